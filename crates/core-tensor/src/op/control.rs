//! Control flow: subgraphs with explicit captures. The host interprets it between straight-line programs.

use std::sync::Arc;

use super::{Evaluation, Inference, Op, OpError, Operator};
use crate::graph::Graph;
use crate::interpreter::Interpreter;
use crate::{Bindings, DType, Tensor, ValueType};

/// Iterations after which a loop without another end is taken for endless.
const MOST_ITERATIONS: i64 = 1 << 40;

/// Runs one of two subgraphs (ONNX If).
///
/// Inputs: the condition, a bool (or one element); then the captures. Both subgraphs take the captures, in this order, as their inputs.
/// Outputs: those of the subgraph.
#[derive(Clone, Debug)]
pub struct If {
    /// Runs where the condition is true.
    pub then_branch: Arc<Graph>,
    /// Runs where it is false.
    pub else_branch: Arc<Graph>,
    /// Types of the outputs; an extent on which the branches differ is a symbol that gets its value when the node has run.
    pub outputs: Vec<ValueType>,
}

/// Runs a subgraph again and again (ONNX Loop; importers lower Scan to it).
///
/// Inputs: the largest number of iterations, i64 (or left out); the first condition, bool (or left out); the first values of the carried
/// values; the captures. The body takes the iteration, i64 scalar; the condition, bool scalar; carried values; captures; it gives the next condition; the next
/// carried values; a value for each scan output. Outputs: the last carried values; the scan outputs, `[iterations, ...]`.
#[derive(Clone, Debug)]
pub struct Loop {
    /// The body.
    pub body: Arc<Graph>,
    /// How many values are carried.
    pub carried: usize,
    /// Types of the outputs; extents that depend on the run are symbols that get their value when the node has run.
    pub outputs: Vec<ValueType>,
}

impl PartialEq for If {
    fn eq(&self, other: &If) -> bool {
        Arc::ptr_eq(&self.then_branch, &other.then_branch)
            && Arc::ptr_eq(&self.else_branch, &other.else_branch)
            && self.outputs == other.outputs
    }
}

impl PartialEq for Loop {
    fn eq(&self, other: &Loop) -> bool {
        Arc::ptr_eq(&self.body, &other.body) && self.carried == other.carried && self.outputs == other.outputs
    }
}

fn bind_types(types: &[ValueType], bindings: &Bindings) -> Vec<ValueType> {
    types
        .iter()
        .map(|ty| match ty {
            ValueType::Tensor { dtype, shape } => {
                ValueType::Tensor { dtype: *dtype, shape: super::shape::bind(shape, bindings) }
            }
            token @ ValueType::Token(_) => token.clone(),
        })
        .collect()
}

/// Checks that a subgraph takes what it is given.
fn check_inputs(what: &str, graph: &Graph, given: &[Option<&ValueType>]) -> Result<(), OpError> {
    if graph.inputs().len() != given.len() {
        let (takes, given) = (graph.inputs().len(), given.len());
        return Err(OpError::Shape(format!("{what} takes {takes} inputs, {given} are given")));
    }
    for (input, given) in graph.inputs().iter().zip(given) {
        let expected = &graph.value(*input).ty;
        let fits = match (expected.as_tensor(), given.and_then(|ty| ty.as_tensor())) {
            (Some((a, shape)), Some((b, given))) => {
                a == b && shape.len() == given.len() && !shape.iter().zip(given).any(|(a, b)| a.differs(b))
            }
            _ => false,
        };
        if !fits {
            let name = &graph.value(*input).name;
            let found = given.map_or_else(|| "nothing".to_owned(), ToString::to_string);
            return Err(OpError::Shape(format!("{what}: input {name:?} is {expected}, {found} is given")));
        }
    }
    Ok(())
}

/// Checks that a subgraph gives what is declared.
fn check_outputs<'a>(
    what: &str,
    given: impl ExactSizeIterator<Item = (&'a ValueType, usize)>,
    declared: &[ValueType],
) -> Result<(), OpError> {
    if given.len() != declared.len() {
        return Err(OpError::Shape(format!("{what} gives {} values, not {}", given.len(), declared.len())));
    }
    for ((given, skip), declared) in given.zip(declared) {
        let fits = match (given.as_tensor(), declared.as_tensor()) {
            (Some((a, given)), Some((b, declared))) => {
                a == b
                    && given.len() + skip == declared.len()
                    && !given.iter().zip(&declared[skip..]).any(|(a, b)| a.differs(b))
            }
            _ => false,
        };
        if !fits {
            return Err(OpError::Shape(format!("{what} gives {given}, {declared} is declared")));
        }
    }
    Ok(())
}

/// One element that says yes or no.
///
/// # Errors
/// When it is not one bool.
pub fn truth(tensor: &Tensor) -> Result<bool, OpError> {
    match (tensor.dtype(), tensor.bytes()) {
        (DType::Bool, [byte]) => Ok(*byte != 0),
        _ => Err(OpError::Shape(format!("a condition must be one bool, it is {tensor:?}"))),
    }
}

impl Operator for If {
    fn name(&self) -> &'static str {
        "If"
    }

    fn attributes(&self) -> String {
        format!(" {{then={}, else={}}}", self.then_branch.name(), self.else_branch.name())
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=usize::MAX, "1 or more")?;
        cx.typed(0, &[DType::Bool], "bool")?;
        for (what, graph) in [("the then branch", &self.then_branch), ("the else branch", &self.else_branch)] {
            check_inputs(what, graph, &cx.inputs[1..])?;
            let given = graph.outputs().iter().map(|id| (&graph.value(*id).ty, 0));
            check_outputs(what, given, &self.outputs)?;
        }
        Ok(self.outputs.clone())
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::If(If { outputs: bind_types(&self.outputs, bindings), ..self.clone() }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let branch = if truth(cx.tensor(0)?)? { &self.then_branch } else { &self.else_branch };
        let captures: Vec<Tensor> = (1..cx.input_count()).map(|i| cx.tensor(i).cloned()).collect::<Result<_, _>>()?;
        let outputs = run(branch, &captures, cx.bindings())?;
        outputs.into_iter().enumerate().try_for_each(|(i, tensor)| cx.put_tensor(i, tensor))
    }
}

fn run(graph: &Arc<Graph>, inputs: &[Tensor], outer: &Bindings) -> Result<Vec<Tensor>, OpError> {
    Interpreter::new(graph.clone())
        .run_within(outer, inputs)
        .map_err(|error| OpError::Subgraph { graph: graph.name().to_owned(), reason: error.to_string() })
}

impl Loop {
    /// Runs the loop with a function that runs the body: how every backend's host does it. `inputs` as the operator's.
    ///
    /// # Errors
    /// When an input does not fit, or the body fails.
    pub fn drive<E: From<OpError>>(
        &self,
        inputs: &[Option<Tensor>],
        mut body: impl FnMut(&[Tensor]) -> Result<Vec<Tensor>, E>,
    ) -> Result<Vec<Tensor>, E> {
        let most = match inputs.first().and_then(Option::as_ref) {
            Some(tensor) => tensor.to_vec::<i64>().map_err(OpError::from)?.first().copied().unwrap_or(0),
            None => MOST_ITERATIONS,
        };
        let mut going = match inputs.get(1).and_then(Option::as_ref) {
            Some(tensor) => truth(tensor)?,
            None => true,
        };
        let missing = || OpError::Arity { expected: "all carried values and captures", found: inputs.len() };
        let rest: Vec<Tensor> =
            inputs.iter().skip(2).map(|input| input.clone().ok_or_else(missing)).collect::<Result<_, OpError>>()?;
        if rest.len() < self.carried {
            return Err(missing().into());
        }
        let (first, captures) = rest.split_at(self.carried);
        let mut carried = first.to_vec();
        let scans = self.outputs.len().saturating_sub(self.carried);
        let mut scanned: Vec<Vec<Tensor>> = vec![Vec::new(); scans];
        let mut iteration = 0i64;
        while going && iteration < most {
            let mut given = vec![
                Tensor::from_slice(&[], &[iteration]).map_err(OpError::from)?,
                Tensor::from_bytes(DType::Bool, &[], &[1]).map_err(OpError::from)?,
            ];
            given.extend(carried.iter().chain(captures).cloned());
            let mut results = body(&given)?.into_iter();
            let wrong = || OpError::Shape("the body gives fewer values than the loop takes".into());
            going = truth(&results.next().ok_or_else(wrong)?)?;
            for value in &mut carried {
                *value = results.next().ok_or_else(wrong)?;
            }
            for list in &mut scanned {
                list.push(results.next().ok_or_else(wrong)?);
            }
            iteration += 1;
        }
        for (list, ty) in scanned.iter().zip(&self.outputs[self.carried..]) {
            carried.push(stack(list, ty)?);
        }
        Ok(carried)
    }
}

/// Joins the values of a scan output along a new first extent.
fn stack(list: &[Tensor], ty: &ValueType) -> Result<Tensor, OpError> {
    let Some(first) = list.first() else {
        // No iteration: extents that nobody knows are 0.
        let Some((dtype, shape)) = ty.as_tensor() else { return Err(OpError::Shape("a token is scanned".into())) };
        let shape: Vec<usize> =
            shape.iter().enumerate().map(|(i, d)| if i == 0 { 0 } else { d.as_num().unwrap_or(0) }).collect();
        return Ok(Tensor::zeroed(dtype, &shape)?);
    };
    let mut bytes = Vec::with_capacity(first.bytes().len().saturating_mul(list.len()));
    for tensor in list {
        if tensor.shape() != first.shape() || tensor.dtype() != first.dtype() {
            return Err(OpError::Shape(format!("iterations give {first:?} and {tensor:?}")));
        }
        bytes.extend_from_slice(tensor.bytes());
    }
    let shape: Vec<usize> = [list.len()].into_iter().chain(first.shape().iter().copied()).collect();
    Ok(Tensor::from_bytes(first.dtype(), &shape, &bytes)?)
}

impl Operator for Loop {
    fn name(&self) -> &'static str {
        "Loop"
    }

    fn attributes(&self) -> String {
        format!(" {{body={}, carried={}}}", self.body.name(), self.carried)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2 + self.carried..=usize::MAX, "2 and the carried values, or more")?;
        if cx.has(0) {
            cx.typed(0, &[DType::I64], "i64")?;
        }
        if cx.has(1) {
            cx.typed(1, &[DType::Bool], "bool")?;
        }
        let (iteration, condition) = (ValueType::tensor(DType::I64, &[]), ValueType::tensor(DType::Bool, &[]));
        let given: Vec<Option<&ValueType>> =
            [Some(&iteration), Some(&condition)].into_iter().chain(cx.inputs[2..].iter().copied()).collect();
        check_inputs("the body", &self.body, &given)?;
        let outputs = self.body.outputs();
        if outputs.len() != 1 + self.outputs.len() || self.carried > self.outputs.len() {
            return Err(OpError::Shape(format!("the body gives {} values", outputs.len())));
        }
        let given =
            outputs[1..].iter().enumerate().map(|(i, id)| (&self.body.value(*id).ty, usize::from(i >= self.carried)));
        check_outputs("the body", given.collect::<Vec<_>>().into_iter(), &self.outputs)?;
        Ok(self.outputs.clone())
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Loop(Loop { outputs: bind_types(&self.outputs, bindings), ..self.clone() }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let inputs: Vec<Option<Tensor>> = (0..cx.input_count()).map(|i| cx.tensor(i).ok().cloned()).collect();
        let outer = cx.bindings().clone();
        let outputs: Vec<Tensor> = self.drive(&inputs, |given| run(&self.body, given, &outer))?;
        outputs.into_iter().enumerate().try_for_each(|(i, tensor)| cx.put_tensor(i, tensor))
    }
}
