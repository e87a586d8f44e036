//! Extents: numbers, or expressions over named symbols.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// An extent of a shape: a number, a symbol such as `tokens`, or an expression over symbols.
///
/// Build sums and products with [`Dim::add`], [`Dim::mul`] and so on: they fold constants and order the operands of
/// commutative operations, so that equal expressions compare equal in the cases that graphs contain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// A known extent.
    Num(usize),
    /// A named symbol; it gets its value when a program runs, and its upper bound when it is compiled.
    Sym(Arc<str>),
    /// An expression.
    Expr(Arc<DimExpr>),
}

/// An operation on extents.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DimExpr {
    /// `a + b`
    Add(Dim, Dim),
    /// `a - b`; an error where it would be negative.
    Sub(Dim, Dim),
    /// `a * b`
    Mul(Dim, Dim),
    /// `a / b`, rounded down.
    Div(Dim, Dim),
    /// `a / b`, rounded up.
    DivCeil(Dim, Dim),
    /// The smaller.
    Min(Dim, Dim),
    /// The larger.
    Max(Dim, Dim),
}

/// Which of two extents.
#[derive(Clone, Copy)]
enum Side {
    Min,
    Max,
}

/// The extents of a tensor, outermost first.
pub type Shape = Vec<Dim>;

/// Why an extent has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DimError {
    /// The symbol is not bound.
    #[error("the extent {symbol:?} has no value")]
    Unbound {
        /// The symbol.
        symbol: Arc<str>,
    },
    /// The expression leaves the range of extents.
    #[error("the extent {expression} overflows, is negative or divides by zero")]
    Range {
        /// The expression.
        expression: String,
    },
}

/// Values (or upper bounds) of symbols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings(BTreeMap<Arc<str>, usize>);

impl Bindings {
    /// No bindings.
    #[must_use]
    pub fn new() -> Bindings {
        Bindings::default()
    }

    /// These bindings and one more.
    #[must_use]
    pub fn with(mut self, symbol: &str, value: usize) -> Bindings {
        self.set(symbol, value);
        self
    }

    /// Binds a symbol, replacing its value.
    pub fn set(&mut self, symbol: &str, value: usize) {
        self.0.insert(Arc::from(symbol), value);
    }

    /// Gives symbols of a declared shape that have no value yet those of the actual extents: also the one unknown symbol of a sum, difference or
    /// product.
    pub fn bind_shape(&mut self, declared: &[Dim], actual: &[usize]) {
        for (dim, extent) in declared.iter().zip(actual) {
            self.bind_dim(dim, *extent);
        }
    }

    fn bind_dim(&mut self, dim: &Dim, extent: usize) {
        match dim {
            Dim::Num(_) => {}
            Dim::Sym(symbol) => {
                self.0.entry(symbol.clone()).or_insert(extent);
            }
            Dim::Expr(expr) => {
                let (a, b) = expr.operands();
                let (known_a, known_b) = (a.eval(self).ok(), b.eval(self).ok());
                let (unknown, rest) = match (&**expr, known_a, known_b) {
                    (DimExpr::Add(..), Some(known), None) => (b, extent.checked_sub(known)),
                    (DimExpr::Add(..), None, Some(known)) => (a, extent.checked_sub(known)),
                    (DimExpr::Mul(..), Some(known), None) if known > 0 => (b, extent.checked_div(known)),
                    (DimExpr::Mul(..), None, Some(known)) if known > 0 => (a, extent.checked_div(known)),
                    (DimExpr::Sub(..), None, Some(known)) => (a, extent.checked_add(known)),
                    _ => return,
                };
                if let Some(rest) = rest {
                    self.bind_dim(unknown, rest);
                }
            }
        }
    }

    /// The value of a symbol.
    #[must_use]
    pub fn get(&self, symbol: &str) -> Option<usize> {
        self.0.get(symbol).copied()
    }

    /// All bindings in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(symbol, value)| (&**symbol, *value))
    }
}

impl Dim {
    /// A symbol.
    #[must_use]
    pub fn sym(name: &str) -> Dim {
        Dim::Sym(Arc::from(name))
    }

    /// The number, if it is one.
    #[must_use]
    pub fn as_num(&self) -> Option<usize> {
        match self {
            Dim::Num(n) => Some(*n),
            Dim::Sym(_) | Dim::Expr(_) => None,
        }
    }

    /// `self + other`
    #[must_use]
    #[allow(clippy::should_implement_trait)] // folds; it is no arithmetic on numbers
    pub fn add(self, other: Dim) -> Dim {
        match (self, other) {
            (Dim::Num(0), dim) | (dim, Dim::Num(0)) => dim,
            (Dim::Num(n), dim) | (dim, Dim::Num(n)) => dim.shifted(n, 0),
            (a, b) => fold(if a <= b { DimExpr::Add(a, b) } else { DimExpr::Add(b, a) }),
        }
    }

    /// `self + more - less`, where numbers in the sum or difference that this is join them: what windows make of extents is then the extent again.
    fn shifted(self, more: usize, less: usize) -> Dim {
        let (rest, more_here, less_here) = match &self {
            Dim::Num(n) => (None, *n, 0),
            Dim::Expr(expr) => match &**expr {
                DimExpr::Add(Dim::Num(n), x) | DimExpr::Add(x, Dim::Num(n)) => (Some(x.clone()), *n, 0),
                DimExpr::Sub(x, Dim::Num(n)) => (Some(x.clone()), 0, *n),
                _ => (Some(self.clone()), 0, 0),
            },
            Dim::Sym(_) => (Some(self.clone()), 0, 0),
        };
        let sums = (more.checked_add(more_here), less.checked_add(less_here));
        let (Some(plus), Some(minus)) = sums else {
            let sum = if more == 0 { self } else { fold(DimExpr::Add(Dim::Num(more), self)) };
            return if less == 0 { sum } else { fold(DimExpr::Sub(sum, Dim::Num(less))) };
        };
        match rest {
            None => fold(DimExpr::Sub(Dim::Num(plus), Dim::Num(minus))),
            Some(rest) if plus == minus => rest,
            Some(rest) if plus > minus => fold(DimExpr::Add(Dim::Num(plus - minus), rest)),
            Some(rest) => fold(DimExpr::Sub(rest, Dim::Num(minus - plus))),
        }
    }

    /// `self - other`
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub fn sub(self, other: Dim) -> Dim {
        match (self, other) {
            (dim, Dim::Num(0)) => dim,
            (a, b) if a == b => Dim::Num(0),
            (dim, Dim::Num(n)) => dim.shifted(0, n),
            (Dim::Expr(sum), b) if matches!(&*sum, DimExpr::Add(x, y) if *x == b || *y == b) => {
                let (x, y) = sum.operands();
                if *x == b { y.clone() } else { x.clone() }
            }
            (a, b) => fold(DimExpr::Sub(a, b)),
        }
    }

    /// `self * other`
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub fn mul(self, other: Dim) -> Dim {
        match (self, other) {
            (Dim::Num(1), dim) | (dim, Dim::Num(1)) => dim,
            (Dim::Num(0), _) | (_, Dim::Num(0)) => Dim::Num(0),
            (a, b) => fold(if a <= b { DimExpr::Mul(a, b) } else { DimExpr::Mul(b, a) }),
        }
    }

    /// `self / other`, rounded down.
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub fn div(self, other: Dim) -> Dim {
        match (self, other) {
            (dim, Dim::Num(1)) => dim,
            (Dim::Expr(product), b)
                if b != Dim::Num(0) && matches!(&*product, DimExpr::Mul(x, y) if *x == b || *y == b) =>
            {
                let (x, y) = product.operands();
                if *x == b { y.clone() } else { x.clone() }
            }
            (a, b) => fold(DimExpr::Div(a, b)),
        }
    }

    /// `self / other`, rounded up.
    #[must_use]
    pub fn div_ceil(self, other: Dim) -> Dim {
        match (self, other) {
            (dim, Dim::Num(1)) => dim,
            (a, b) => fold(DimExpr::DivCeil(a, b)),
        }
    }

    /// The smaller of the two.
    #[must_use]
    pub fn min(self, other: Dim) -> Dim {
        match (self, other) {
            (a, b) if a == b => a,
            (Dim::Num(0), _) | (_, Dim::Num(0)) => Dim::Num(0),
            // min(a, max(a, b)) is a, min(a, min(a, b)) is min(a, b).
            (a, b) if b.has_operand(&a, Side::Max) || a.has_operand(&b, Side::Min) => a,
            (a, b) if a.has_operand(&b, Side::Max) || b.has_operand(&a, Side::Min) => b,
            (a, b) => fold(if a <= b { DimExpr::Min(a, b) } else { DimExpr::Min(b, a) }),
        }
    }

    /// The larger of the two.
    #[must_use]
    pub fn max(self, other: Dim) -> Dim {
        match (self, other) {
            (a, b) if a == b => a,
            (dim, Dim::Num(0)) | (Dim::Num(0), dim) => dim,
            // max(a, min(a, b)) is a, max(a, max(a, b)) is max(a, b): what broadcasting makes of a table that is cut to the tokens.
            (a, b) if b.has_operand(&a, Side::Min) || a.has_operand(&b, Side::Max) => a,
            (a, b) if a.has_operand(&b, Side::Min) || b.has_operand(&a, Side::Max) => b,
            (a, b) => fold(if a <= b { DimExpr::Max(a, b) } else { DimExpr::Max(b, a) }),
        }
    }

    /// Whether this is the smaller (larger) of two extents of which `dim` is one.
    fn has_operand(&self, dim: &Dim, side: Side) -> bool {
        match self {
            Dim::Expr(expr) => match (&**expr, side) {
                (DimExpr::Min(a, b), Side::Min) | (DimExpr::Max(a, b), Side::Max) => a == dim || b == dim,
                _ => false,
            },
            Dim::Num(_) | Dim::Sym(_) => false,
        }
    }

    /// Whether two extents are known to be different: both are numbers, and not the same. (Symbols may turn out to be equal; what is then wrong
    /// is found when they have values, by [`Graph::extents`](crate::Graph::extents).)
    #[must_use]
    pub fn differs(&self, other: &Dim) -> bool {
        matches!((self, other), (Dim::Num(a), Dim::Num(b)) if a != b)
    }

    /// With the symbols that have values replaced by these; an expression that has none under them (it would be negative) stays as it is.
    #[must_use]
    pub fn bind(&self, bindings: &Bindings) -> Dim {
        match self {
            Dim::Num(n) => Dim::Num(*n),
            Dim::Sym(symbol) => bindings.get(symbol).map_or_else(|| self.clone(), Dim::Num),
            Dim::Expr(expr) => {
                let (a, b) = expr.operands();
                fold(expr.with(a.bind(bindings), b.bind(bindings)))
            }
        }
    }

    /// With symbols replaced by expressions.
    #[must_use]
    pub fn substitute(&self, of: &dyn Fn(&str) -> Option<Dim>) -> Dim {
        match self {
            Dim::Num(n) => Dim::Num(*n),
            Dim::Sym(symbol) => of(symbol).unwrap_or_else(|| self.clone()),
            Dim::Expr(expr) => {
                let (a, b) = expr.operands();
                let (a, b) = (a.substitute(of), b.substitute(of));
                match &**expr {
                    DimExpr::Add(..) => a.add(b),
                    DimExpr::Sub(..) => a.sub(b),
                    DimExpr::Mul(..) => a.mul(b),
                    DimExpr::Div(..) => a.div(b),
                    DimExpr::DivCeil(..) => a.div_ceil(b),
                    DimExpr::Min(..) => a.min(b),
                    DimExpr::Max(..) => a.max(b),
                }
            }
        }
    }

    /// The value under these bindings.
    ///
    /// # Errors
    /// When a symbol is unbound, or the expression overflows, is negative or divides by zero.
    pub fn eval(&self, bindings: &Bindings) -> Result<usize, DimError> {
        match self {
            Dim::Num(n) => Ok(*n),
            Dim::Sym(symbol) => bindings.get(symbol).ok_or_else(|| DimError::Unbound { symbol: symbol.clone() }),
            Dim::Expr(expr) => {
                let (a, b) = expr.operands();
                let (a, b) = (a.eval(bindings)?, b.eval(bindings)?);
                expr.apply(a, b).ok_or_else(|| DimError::Range { expression: self.to_string() })
            }
        }
    }

    /// The factors of a product, itself if it is none.
    pub(crate) fn factors<'a>(&'a self, out: &mut Vec<&'a Dim>) {
        match self {
            Dim::Expr(expr) if matches!(**expr, DimExpr::Mul(..)) => {
                let (a, b) = expr.operands();
                a.factors(out);
                b.factors(out);
            }
            dim => out.push(dim),
        }
    }

    /// Calls `f` with every symbol in the expression.
    pub fn symbols(&self, f: &mut impl FnMut(&Arc<str>)) {
        match self {
            Dim::Num(_) => {}
            Dim::Sym(symbol) => f(symbol),
            Dim::Expr(expr) => {
                let (a, b) = expr.operands();
                a.symbols(f);
                b.symbols(f);
            }
        }
    }
}

fn fold(expr: DimExpr) -> Dim {
    let (a, b) = expr.operands();
    if let (Some(a), Some(b)) = (a.as_num(), b.as_num())
        && let Some(n) = expr.apply(a, b)
    {
        return Dim::Num(n);
    }
    Dim::Expr(Arc::new(expr))
}

impl DimExpr {
    fn operands(&self) -> (&Dim, &Dim) {
        use DimExpr::*;
        match self {
            Add(a, b) | Sub(a, b) | Mul(a, b) | Div(a, b) | DivCeil(a, b) | Min(a, b) | Max(a, b) => (a, b),
        }
    }

    /// The same operation on other operands.
    fn with(&self, a: Dim, b: Dim) -> DimExpr {
        match self {
            DimExpr::Add(..) => DimExpr::Add(a, b),
            DimExpr::Sub(..) => DimExpr::Sub(a, b),
            DimExpr::Mul(..) => DimExpr::Mul(a, b),
            DimExpr::Div(..) => DimExpr::Div(a, b),
            DimExpr::DivCeil(..) => DimExpr::DivCeil(a, b),
            DimExpr::Min(..) => DimExpr::Min(a, b),
            DimExpr::Max(..) => DimExpr::Max(a, b),
        }
    }

    fn apply(&self, a: usize, b: usize) -> Option<usize> {
        match self {
            DimExpr::Add(..) => a.checked_add(b),
            DimExpr::Sub(..) => a.checked_sub(b),
            DimExpr::Mul(..) => a.checked_mul(b),
            DimExpr::Div(..) => a.checked_div(b),
            DimExpr::DivCeil(..) => (b != 0).then(|| a.div_ceil(b)),
            DimExpr::Min(..) => Some(a.min(b)),
            DimExpr::Max(..) => Some(a.max(b)),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Num(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Num(n) => write!(f, "{n}"),
            Dim::Sym(symbol) => f.write_str(symbol),
            Dim::Expr(expr) => {
                let (a, b) = expr.operands();
                match &**expr {
                    DimExpr::Add(..) => write!(f, "({a}+{b})"),
                    DimExpr::Sub(..) => write!(f, "({a}-{b})"),
                    DimExpr::Mul(..) => write!(f, "{a}*{b}"),
                    DimExpr::Div(..) => write!(f, "{a}/{b}"),
                    DimExpr::DivCeil(..) => write!(f, "ceil({a}/{b})"),
                    DimExpr::Min(..) => write!(f, "min({a},{b})"),
                    DimExpr::Max(..) => write!(f, "max({a},{b})"),
                }
            }
        }
    }
}

/// The numbers of a shape under bindings.
///
/// # Errors
/// As [`Dim::eval`].
pub fn eval_shape(shape: &[Dim], bindings: &Bindings) -> Result<Vec<usize>, DimError> {
    shape.iter().map(|dim| dim.eval(bindings)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_fold_and_operands_are_ordered() {
        let tokens = Dim::sym("tokens");
        assert_eq!(Dim::Num(3).mul(Dim::Num(4)), Dim::Num(12));
        assert_eq!(tokens.clone().mul(2.into()), Dim::Num(2).mul(tokens.clone()));
        assert_eq!(tokens.clone().sub(tokens.clone()), Dim::Num(0));
        assert_eq!(tokens.clone().add(0.into()), tokens);
    }

    #[test]
    fn numbers_in_sums_and_differences_join() {
        let height = Dim::sym("height");
        let padded = Dim::Num(1).add(height.clone()).add(1.into());
        assert_eq!(padded.to_string(), "(2+height)");
        assert_eq!(padded.sub(3.into()).add(1.into()), height);
        let less = height.clone().sub(3.into()).sub(2.into());
        assert_eq!(less, height.clone().sub(5.into()));
        assert_eq!(less.add(7.into()), Dim::Num(2).add(height));
        assert_eq!(Dim::Num(7).sub(3.into()), Dim::Num(4));
        assert!(Dim::Num(3).sub(7.into()).eval(&Bindings::new()).is_err());
        let sum = Dim::Num(usize::MAX).add(Dim::sym("n"));
        assert!(sum.add(1.into()).eval(&Bindings::new().with("n", 0)).is_err());
    }

    #[test]
    fn the_larger_of_an_extent_and_what_is_cut_to_it_is_the_extent() {
        let tokens = Dim::sym("tokens");
        let cut = Dim::Num(512).min(tokens.clone());
        assert_eq!(cut.clone().max(tokens.clone()), tokens);
        assert_eq!(tokens.clone().max(cut.clone()), tokens);
        let larger = tokens.clone().max(Dim::sym("other"));
        assert_eq!(larger.clone().max(tokens.clone()), larger);
        assert_eq!(larger.min(tokens.clone()), tokens);
        assert_eq!(cut.clone().min(tokens), cut);
    }

    #[test]
    fn evaluation_names_the_unbound_symbol_and_the_bad_expression() {
        let dim = Dim::sym("tokens").sub(Dim::Num(5));
        assert_eq!(dim.eval(&Bindings::new().with("tokens", 7)), Ok(2));
        assert_eq!(dim.eval(&Bindings::new()), Err(DimError::Unbound { symbol: "tokens".into() }));
        assert_eq!(
            dim.eval(&Bindings::new().with("tokens", 3)),
            Err(DimError::Range { expression: "(tokens-5)".into() })
        );
    }
}
