//! Extents: numbers where they are known, computed from the shapes of values where they are not.

use core_tensor::{Dim, DimExpr, ValueId, ValueSource};

use super::ExportError;
use super::nodes::{Writer, ints};

impl Writer<'_> {
    /// A shape as an i64 vector. `from` is the value that is reshaped, if that is what the shape is for: then one unknown extent is -1, and those that stay are 0.
    pub(super) fn shape(&mut self, shape: &[Dim], from: Option<ValueId>) -> Result<String, ExportError> {
        let known: Option<Vec<i64>> = shape.iter().map(number).collect();
        if let Some(known) = known {
            return self.ints(&known);
        }
        if let Some((_, from)) = from.and_then(|id| self.graph.tensor_type(id)) {
            // 0 copies an extent, unless an extent is 0: then it would be taken for one that is copied.
            let kept = |i: usize, dim: &Dim| number(dim).is_none() && from.get(i) == Some(dim);
            let open = shape.iter().enumerate().filter(|(i, dim)| number(dim).is_none() && !kept(*i, dim)).count();
            if open <= 1 && !shape.contains(&Dim::Num(0)) {
                let values: Vec<i64> = shape
                    .iter()
                    .enumerate()
                    .map(|(i, dim)| number(dim).unwrap_or(if kept(i, dim) { 0 } else { -1 }))
                    .collect();
                return self.ints(&values);
            }
        }
        let parts: Vec<String> = shape.iter().map(|dim| self.dim(dim)).collect::<Result<_, _>>()?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(self.step("Concat", &parts, vec![super::nodes::int("axis", 0)]))
    }

    /// An extent as an i64 vector of one element.
    pub(super) fn dim(&mut self, dim: &Dim) -> Result<String, ExportError> {
        if let Some(number) = number(dim) {
            return self.ints(&[number]);
        }
        let key = dim.to_string();
        if let Some(name) = self.dims.get(&key) {
            return Ok(name.clone());
        }
        let name = match dim {
            Dim::Num(_) => return Err(self.refuse("an extent of more than 63 bits")),
            Dim::Sym(_) => self.symbol(dim)?,
            Dim::Expr(expr) => {
                let (op, a, b) = match &**expr {
                    DimExpr::Add(a, b) => ("Add", a, b),
                    DimExpr::Sub(a, b) => ("Sub", a, b),
                    DimExpr::Mul(a, b) => ("Mul", a, b),
                    DimExpr::Div(a, b) | DimExpr::DivCeil(a, b) => ("Div", a, b),
                    DimExpr::Min(a, b) => ("Min", a, b),
                    DimExpr::Max(a, b) => ("Max", a, b),
                };
                let (mut a, b) = (self.dim(a)?, self.dim(b)?);
                if matches!(**expr, DimExpr::DivCeil(_, _)) {
                    let one = self.ints(&[1])?;
                    let less = self.step("Sub", &[&b, &one], Vec::new());
                    a = self.step("Add", &[&a, &less], Vec::new());
                }
                self.step(op, &[&a, &b], Vec::new())
            }
        };
        self.dims.insert(key, name.clone());
        Ok(name)
    }

    /// A symbol, read from the shape of the first value that has it as an extent.
    fn symbol(&mut self, symbol: &Dim) -> Result<String, ExportError> {
        let graph = self.graph;
        let has = |id: &ValueId| {
            graph
                .tensor_type(*id)
                .and_then(|(_, shape)| shape.iter().position(|dim| dim == symbol))
                .map(|axis| (*id, axis))
        };
        let computed = graph.nodes().iter().flat_map(|node| &node.outputs);
        let found = graph.inputs().iter().find_map(has).or_else(|| computed.into_iter().find_map(has));
        let Some((id, axis)) = found else {
            return Err(self.refuse(format!("no input has the extent {symbol}")));
        };
        if matches!(graph.value(id).source, ValueSource::Weight(_)) {
            return Err(self.refuse(format!("the extent {symbol} is that of a weight")));
        }
        let name = self.name(id);
        let shape = self.step("Shape", &[&name], Vec::new());
        let at = self.ints(&[axis as i64])?;
        Ok(self.step("Gather", &[&shape, &at], Vec::new()))
    }

    /// A value with another shape.
    pub(super) fn reshaped(&mut self, name: &str, shape: &[i64]) -> Result<String, ExportError> {
        let shape = self.ints(shape)?;
        Ok(self.step("Reshape", &[name, &shape], Vec::new()))
    }

    /// A value with extents permuted.
    pub(super) fn transposed(&mut self, name: &str, perm: &[usize]) -> String {
        self.step("Transpose", &[name], vec![ints("perm", perm.iter().map(|i| *i as i64))])
    }
}

/// An extent as ONNX counts.
pub(super) fn number(dim: &Dim) -> Option<i64> {
    dim.as_num().and_then(|n| i64::try_from(n).ok())
}
