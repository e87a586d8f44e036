//! Integers that may depend on extents: what shape arithmetic computes with.

use core_tensor::{Dim, DimExpr};

/// An element of a small integer tensor, as far as it is known when the model is imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SymInt {
    /// A number.
    Num(i64),
    /// An extent: not negative, and no number.
    Dim(Dim),
    /// A negated extent.
    Neg(Dim),
    /// Known only when the graph runs.
    Unknown,
}

use SymInt::{Neg, Num, Unknown};

impl SymInt {
    /// An extent.
    pub(crate) fn of(dim: Dim) -> SymInt {
        match dim {
            Dim::Num(n) => i64::try_from(n).map_or(Unknown, Num),
            dim if is_short(&dim, MAX_TERMS) => SymInt::Dim(dim),
            _ => Unknown,
        }
    }

    /// The extent that this is, if it is one.
    pub(crate) fn as_dim(&self) -> Option<Dim> {
        match self {
            Num(n) => usize::try_from(*n).ok().map(Dim::Num),
            SymInt::Dim(dim) => Some(dim.clone()),
            Neg(_) | Unknown => None,
        }
    }

    pub(crate) fn as_num(&self) -> Option<i64> {
        match self {
            Num(n) => Some(*n),
            _ => None,
        }
    }

    fn checked(n: Option<i64>) -> SymInt {
        n.map_or(Unknown, Num)
    }

    pub(crate) fn neg(&self) -> SymInt {
        match self {
            Num(n) => SymInt::checked(n.checked_neg()),
            SymInt::Dim(dim) => Neg(dim.clone()),
            Neg(dim) => SymInt::Dim(dim.clone()),
            Unknown => Unknown,
        }
    }

    pub(crate) fn add(&self, other: &SymInt) -> SymInt {
        match (self, other) {
            (Num(a), Num(b)) => SymInt::checked(a.checked_add(*b)),
            (Num(0), x) | (x, Num(0)) => x.clone(),
            (SymInt::Dim(a), SymInt::Dim(b)) => SymInt::of(a.clone().add(b.clone())),
            (SymInt::Dim(a), Neg(b)) | (Neg(b), SymInt::Dim(a)) => SymInt::of(difference(a, b)),
            (SymInt::Dim(a), Num(n)) | (Num(n), SymInt::Dim(a)) => match usize::try_from(n.unsigned_abs()) {
                Ok(m) if *n > 0 => SymInt::of(plus(a, m)),
                Ok(m) => SymInt::of(minus(a, m)),
                Err(_) => Unknown,
            },
            (Neg(a), Num(n)) | (Num(n), Neg(a)) if *n >= 0 => {
                usize::try_from(*n).map_or(Unknown, |n| SymInt::of(difference(&Dim::Num(n), a)))
            }
            (Neg(a), Neg(b)) => Neg(a.clone().add(b.clone())),
            _ => Unknown,
        }
    }

    pub(crate) fn sub(&self, other: &SymInt) -> SymInt {
        self.add(&other.neg())
    }

    pub(crate) fn mul(&self, other: &SymInt) -> SymInt {
        match (self, other) {
            (Num(a), Num(b)) => SymInt::checked(a.checked_mul(*b)),
            (Num(0), _) | (_, Num(0)) => Num(0),
            (Num(1), x) | (x, Num(1)) => x.clone(),
            (Num(-1), x) | (x, Num(-1)) => x.neg(),
            (SymInt::Dim(a), SymInt::Dim(b)) => SymInt::of(product(&[a.clone(), b.clone()])),
            (SymInt::Dim(a), Num(n)) | (Num(n), SymInt::Dim(a)) => match usize::try_from(n.unsigned_abs()) {
                Ok(m) => {
                    let product = SymInt::of(product(&[a.clone(), Dim::Num(m)]));
                    if *n < 0 { product.neg() } else { product }
                }
                Err(_) => Unknown,
            },
            _ => Unknown,
        }
    }

    /// The quotient, towards zero.
    pub(crate) fn div(&self, other: &SymInt) -> SymInt {
        match (self, other) {
            (Num(a), Num(b)) => SymInt::checked(a.checked_div(*b)),
            (x, Num(1)) => x.clone(),
            (Num(0), SymInt::Dim(_)) => Num(0),
            (SymInt::Dim(a), Num(n)) if *n > 0 => {
                usize::try_from(*n).map_or(Unknown, |n| SymInt::of(quotient(std::slice::from_ref(a), &[Dim::Num(n)])))
            }
            (SymInt::Dim(a), SymInt::Dim(b)) => SymInt::of(quotient(std::slice::from_ref(a), std::slice::from_ref(b))),
            (Num(a), SymInt::Dim(b)) if *a > 0 => {
                usize::try_from(*a).map_or(Unknown, |a| SymInt::of(Dim::Num(a).div(b.clone())))
            }
            (Neg(_), Num(n)) if *n > 0 => self.neg().div(other).neg(),
            _ => Unknown,
        }
    }

    /// The remainder, for operands that are not negative.
    pub(crate) fn rem(&self, other: &SymInt) -> SymInt {
        match (self, other) {
            (Num(a), Num(b)) if *a >= 0 && *b > 0 => Num(a % b),
            (SymInt::Dim(_), Num(b)) if *b > 0 => self.sub(&self.div(other).mul(other)),
            _ => Unknown,
        }
    }

    pub(crate) fn min(&self, other: &SymInt) -> SymInt {
        match (self, other) {
            (Num(a), Num(b)) => Num(*a.min(b)),
            (Num(n), SymInt::Dim(_)) | (SymInt::Dim(_), Num(n)) if *n <= 0 => Num(*n),
            // What slices use as "to the end".
            (Num(n), x @ SymInt::Dim(_)) | (x @ SymInt::Dim(_), Num(n)) if *n >= i64::from(i32::MAX) => x.clone(),
            (a, b) => match (a.as_dim(), b.as_dim()) {
                (Some(a), Some(b)) => SymInt::of(smaller(a, b)),
                _ => Unknown,
            },
        }
    }

    pub(crate) fn max(&self, other: &SymInt) -> SymInt {
        match (self, other) {
            (Num(a), Num(b)) => Num(*a.max(b)),
            (Num(n), x @ SymInt::Dim(_)) | (x @ SymInt::Dim(_), Num(n)) if *n <= 0 => x.clone(),
            (a, b) => match (a.as_dim(), b.as_dim()) {
                (Some(a), Some(b)) => SymInt::of(a.max(b)),
                _ => Unknown,
            },
        }
    }

    /// 1 or 0 where it is known whether they are equal.
    pub(crate) fn equal(&self, other: &SymInt) -> SymInt {
        match (self, other) {
            (Unknown, _) | (_, Unknown) => Unknown,
            (a, b) if a == b => Num(1),
            (Num(_), Num(_)) => Num(0),
            (Num(n), SymInt::Dim(_)) | (SymInt::Dim(_), Num(n)) if *n < 0 => Num(0),
            _ => Unknown,
        }
    }

    /// 1 or 0 where it is known whether this is smaller.
    pub(crate) fn less(&self, other: &SymInt) -> SymInt {
        match (self, other) {
            (Num(a), Num(b)) => Num(i64::from(a < b)),
            (SymInt::Dim(_), Num(n)) if *n <= 0 => Num(0),
            (Num(n), SymInt::Dim(_)) if *n < 0 => Num(1),
            (SymInt::Dim(a), SymInt::Dim(b)) if a == b => Num(0),
            _ => Unknown,
        }
    }
}

/// Numbers and symbols of an expression that is followed, at most.
const MAX_TERMS: usize = 1024;
/// Numbers and symbols of an extent, at most: longer ones are made by files that want them long.
pub(crate) const MAX_EXTENT_TERMS: usize = 4096;

/// Whether an expression has no more than so many numbers and symbols. (Parts may be shared: what is small in memory can be long to walk.)
pub(crate) fn is_short(dim: &Dim, most: usize) -> bool {
    fn walk(dim: &Dim, left: &mut usize) -> bool {
        match dim {
            Dim::Num(_) | Dim::Sym(_) => match left.checked_sub(1) {
                Some(rest) => {
                    *left = rest;
                    true
                }
                None => false,
            },
            Dim::Expr(expr) => {
                let (DimExpr::Add(a, b)
                | DimExpr::Sub(a, b)
                | DimExpr::Mul(a, b)
                | DimExpr::Div(a, b)
                | DimExpr::DivCeil(a, b)
                | DimExpr::Min(a, b)
                | DimExpr::Max(a, b)) = &**expr;
                walk(a, left) && walk(b, left)
            }
        }
    }
    let mut left = most;
    walk(dim, &mut left)
}

/// `a + n`, with numbers collected so that `(a + 1) + 1` is `a + 2`.
fn plus(a: &Dim, n: usize) -> Dim {
    if let Dim::Expr(expr) = a {
        match &**expr {
            DimExpr::Add(Dim::Num(m), x) | DimExpr::Add(x, Dim::Num(m)) => {
                return m.checked_add(n).map_or_else(|| a.clone().add(Dim::Num(n)), |m| x.clone().add(Dim::Num(m)));
            }
            DimExpr::Sub(x, Dim::Num(m)) => {
                return if n >= *m { plus(x, n - m) } else { x.clone().sub(Dim::Num(m - n)) };
            }
            _ => {}
        }
    }
    a.clone().add(Dim::Num(n))
}

/// `a - n`, with numbers collected.
fn minus(a: &Dim, n: usize) -> Dim {
    if let Dim::Expr(expr) = a {
        match &**expr {
            DimExpr::Add(Dim::Num(m), x) | DimExpr::Add(x, Dim::Num(m)) => {
                return if *m >= n { plus(x, m - n) } else { minus(x, n - m) };
            }
            DimExpr::Sub(x, Dim::Num(m)) => {
                return m.checked_add(n).map_or_else(|| a.clone().sub(Dim::Num(n)), |m| x.clone().sub(Dim::Num(m)));
            }
            _ => {}
        }
    }
    a.clone().sub(Dim::Num(n))
}

/// `a - b`, with equal terms of sums taken out.
pub(crate) fn difference(a: &Dim, b: &Dim) -> Dim {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    terms(a, &mut left);
    terms(b, &mut right);
    right.retain(|term| match left.iter().position(|other| other == term) {
        Some(at) => {
            left.remove(at);
            false
        }
        None => true,
    });
    let sum = |terms: Vec<Dim>| terms.into_iter().fold(Dim::Num(0), Dim::add);
    match sum(right) {
        Dim::Num(n) => minus(&sum(left), n),
        right => sum(left).sub(right),
    }
}

fn terms(dim: &Dim, out: &mut Vec<Dim>) {
    match dim {
        Dim::Expr(expr) => match &**expr {
            DimExpr::Add(a, b) => {
                terms(a, out);
                terms(b, out);
            }
            _ => out.push(dim.clone()),
        },
        Dim::Num(0) => {}
        _ => out.push(dim.clone()),
    }
}

/// The smaller of two extents, where it is plain which one that is.
fn smaller(a: Dim, b: Dim) -> Dim {
    let at_least = |x: &Dim, y: &Dim| {
        // x = y + something
        let (mut left, mut right) = (Vec::new(), Vec::new());
        terms(x, &mut left);
        terms(y, &mut right);
        right.iter().all(|term| left.contains(term))
            && !right.iter().enumerate().any(|(i, term)| right[..i].contains(term))
    };
    if at_least(&a, &b) {
        b
    } else if at_least(&b, &a) {
        a
    } else {
        a.min(b)
    }
}

fn factors(dim: &Dim, out: &mut Vec<Dim>) {
    match dim {
        Dim::Expr(expr) => match &**expr {
            DimExpr::Mul(a, b) => {
                factors(a, out);
                factors(b, out);
            }
            _ => out.push(dim.clone()),
        },
        _ => out.push(dim.clone()),
    }
}

/// The product of extents, numbers first.
pub(crate) fn product(dims: &[Dim]) -> Dim {
    let mut all = Vec::new();
    dims.iter().for_each(|dim| factors(dim, &mut all));
    let number = all.iter().filter_map(Dim::as_num).fold(Dim::Num(1), |n, m| n.mul(Dim::Num(m)));
    let mut rest: Vec<Dim> = all.into_iter().filter(|dim| dim.as_num().is_none()).collect();
    rest.sort();
    rest.into_iter().fold(number, Dim::mul)
}

/// The product of some extents divided by that of others, with common factors taken out.
pub(crate) fn quotient(over: &[Dim], under: &[Dim]) -> Dim {
    fn gcd(a: usize, b: usize) -> usize {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let (mut top, mut bottom) = (Vec::new(), Vec::new());
    over.iter().for_each(|dim| factors(dim, &mut top));
    under.iter().for_each(|dim| factors(dim, &mut bottom));
    bottom.retain(|factor| {
        if factor.as_num().is_some() {
            return true;
        }
        match top.iter().position(|other| other == factor) {
            Some(at) => {
                top.remove(at);
                false
            }
            None => true,
        }
    });
    let number = |dims: &[Dim]| dims.iter().filter_map(Dim::as_num).try_fold(1usize, |n, m| n.checked_mul(m));
    let (Some(a), Some(b)) = (number(&top), number(&bottom)) else {
        return product(over).div(product(under));
    };
    let common = gcd(a, b).max(1);
    let rest = |dims: Vec<Dim>, n: usize| {
        let symbols = dims.into_iter().filter(|dim| dim.as_num().is_none());
        product(&symbols.chain([Dim::Num(n)]).collect::<Vec<_>>())
    };
    rest(top, a / common).div(rest(bottom, b / common))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sym(name: &str) -> SymInt {
        SymInt::of(Dim::sym(name))
    }

    #[test]
    fn what_was_added_can_be_taken_away() {
        let total = sym("past").add(&sym("new"));
        assert_eq!(total.sub(&sym("past")), sym("new"));
        assert_eq!(total.add(&Num(2)).sub(&Num(2)), total);
        assert_eq!(sym("n").sub(&Num(1)).add(&Num(1)), sym("n"));
        assert_eq!(sym("n").add(&Num(3)).sub(&Num(1)), sym("n").add(&Num(2)));
    }

    #[test]
    fn what_was_multiplied_can_be_divided_away() {
        let n = Dim::sym("n");
        assert_eq!(sym("n").mul(&Num(12)).div(&Num(4)), sym("n").mul(&Num(3)));
        assert_eq!(quotient(&[n.clone(), 12.into(), 64.into()], &[768.into()]), n);
        assert_eq!(sym("n").mul(&Num(6)).rem(&Num(3)), Num(0));
    }

    #[test]
    fn expressions_that_double_are_given_up() {
        let mut n = sym("n").add(&sym("m"));
        for _ in 0..40 {
            n = n.mul(&n).add(&Num(1));
        }
        assert_eq!(n, Unknown);
    }

    #[test]
    fn signs_decide_comparisons_with_extents() {
        assert_eq!(sym("n").equal(&Num(-1)), Num(0));
        assert_eq!(sym("n").equal(&Num(1)), Unknown);
        assert_eq!(sym("n").less(&Num(0)), Num(0));
        assert_eq!(sym("n").max(&Num(0)), sym("n"));
        assert_eq!(sym("n").min(&Num(i64::MAX)), sym("n"));
        let sum = sym("n").add(&sym("m"));
        assert_eq!(sum.min(&sym("n")), sym("n"));
    }
}
