//! Lowering: from nodes as ONNX has them to those of the graph.

pub(crate) mod attributes;
pub(crate) mod build;
pub(crate) mod call;
pub(crate) mod fail;
pub(crate) mod operand;
mod scope;
pub(crate) mod subgraph;
pub(crate) mod sym_int;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use core_tensor::{Bindings, DType, Dim, Graph, Tensor, ValueId};

use crate::error::{Fault, NodePlace, OnnxError, Subject, UnsupportedOperator};
use crate::function::{MAX_DEPTH, MAX_NODES};
use crate::model::{OnnxModel, domain_name, opsets};
use crate::ops;
use crate::proto::{GraphProto, NodeProto};
use crate::tensor::TensorData;
use crate::value_info::{Extent, OnnxType, ValueInfo};
use attributes::{Attributes, Environment};
use call::Call;
use fail::{Fail, Res};
use operand::{Operand, Value, held};
use scope::Scopes;
use sym_int::SymInt;

/// How a model becomes a graph.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Numbers for extents that the model names ("batch" → 1). Extents without a name have that of the input and their place: `x.0`.
    pub extents: Bindings,
    /// Shapes of inputs, by name, where the model declares none or others.
    pub shapes: HashMap<String, Vec<Dim>>,
    /// Values of inputs, by name, which the graph then does not take: they are constants of it. For inputs that decide about shapes.
    pub values: HashMap<String, Tensor>,
    /// Lengths of inputs that are sequences, by name; each element becomes an input `name.0`, `name.1` ... of its own.
    pub sequences: HashMap<String, usize>,
    /// Inputs that are optionals and are given, by name; others are none.
    pub present: HashSet<String>,
}

/// A graph under construction: the model's, or one within a node.
pub(crate) struct Level {
    pub(crate) graph: Graph,
    /// Operand → its value in this graph.
    pub(crate) known: HashMap<u32, ValueId>,
    /// Constants of half precision → their weight, as it is stored.
    pub(crate) stored: HashMap<u32, ValueId>,
    /// Names of weights.
    pub(crate) names: HashSet<String>,
    /// What was taken from the graph around, in the order in which it was taken: each is an input.
    pub(crate) captures: Vec<Operand>,
}

impl Level {
    /// Takes a value from the graph around.
    pub(crate) fn capture(&mut self, operand: &Operand) -> ValueId {
        let id = self.graph.input(&subgraph::capture_name(operand), held(operand.dtype()), operand.shape());
        self.captures.push(operand.clone());
        self.known.insert(operand.key(), id);
        id
    }

    pub(crate) fn new(name: &str) -> Level {
        Level {
            graph: Graph::new(name),
            known: HashMap::new(),
            stored: HashMap::new(),
            names: HashSet::new(),
            captures: Vec::new(),
        }
    }
}

/// The state of an import.
pub(crate) struct Lower<'a> {
    pub(crate) model: &'a OnnxModel,
    pub(crate) options: &'a ImportOptions,
    pub(crate) levels: Vec<Level>,
    scopes: Scopes,
    keys: u32,
    symbols: HashSet<String>,
    /// The last number that a name of symbols has got.
    last_symbol: HashMap<String, usize>,
    nodes: usize,
    depth: usize,
    functions: Vec<usize>,
    unsupported: BTreeMap<(String, String, i64), UnsupportedOperator>,
    /// The name of the values that are made now.
    pub(crate) name: String,
    /// Elements of constants that were computed so far.
    pub(crate) folded: usize,
}

/// The versions of operators in force.
pub(crate) type Opsets = Rc<BTreeMap<String, i64>>;

impl OnnxModel {
    /// The model as a graph. Inputs and outputs have the model's names and order; weights stay in the file.
    ///
    /// # Errors
    /// When operators are not supported (all of them are listed), or a node, tensor or type is wrong.
    pub fn graph(&self, options: &ImportOptions) -> Result<Graph, OnnxError> {
        let proto = self.main_graph()?;
        let mut lower = Lower {
            model: self,
            options,
            levels: vec![Level::new(proto.name())],
            scopes: Scopes::default(),
            keys: 0,
            symbols: HashSet::new(),
            last_symbol: HashMap::new(),
            nodes: 0,
            depth: 0,
            functions: Vec::new(),
            unsupported: BTreeMap::new(),
            name: String::new(),
            folded: 0,
        };
        lower.main(proto).map_err(|fail| match fail {
            Fail::Placed(error) => *error,
            Fail::Reason(reason) => lower.subject(proto.name(), reason),
            Fail::Unsupported | Fail::Lacking => lower.subject(proto.name(), "not supported".into()),
        })?;
        if !lower.unsupported.is_empty() {
            let operators = std::mem::take(&mut lower.unsupported).into_values().collect();
            return Err(OnnxError::Unsupported { path: self.path().to_owned(), operators });
        }
        let graph = lower.levels.pop().map(|level| level.graph).unwrap_or_default();
        graph.verify().map_err(|source| OnnxError::Graph { path: self.path().to_owned(), source })?;
        Ok(graph)
    }
}

impl<'a> Lower<'a> {
    fn subject(&self, graph: &str, reason: String) -> OnnxError {
        OnnxError::malformed(self.model.path(), Subject::Graph(graph.to_owned()), Fault::ValueType(reason))
    }

    pub(crate) fn fault(&self, subject: Subject, fault: Fault) -> Fail {
        OnnxError::malformed(self.model.path(), subject, fault).into()
    }

    fn main(&mut self, proto: &'a GraphProto) -> Res<()> {
        self.scopes.push();
        let stored: HashSet<&str> = proto.initializer.iter().map(|tensor| tensor.name()).collect();
        let sparse = proto.sparse_initializer.iter().filter_map(|sparse| Some(sparse.values.as_ref()?.name()));
        let stored: HashSet<&str> = stored.into_iter().chain(sparse).collect();
        let mut seen = HashSet::new();
        for input in &proto.input {
            if !seen.insert(input.name()) {
                let fault = Fault::Twice { what: "input", name: input.name().to_owned() };
                return Err(self.fault(Subject::Graph(proto.name().to_owned()), fault));
            }
            if stored.contains(input.name()) {
                continue;
            }
            if let Some(tensor) = self.options.values.get(input.name()) {
                let value = self.constant(tensor.clone(), input.name());
                self.scopes.set(input.name(), value.into());
                continue;
            }
            let wrong = |lower: &Self, fault| lower.fault(Subject::Value(input.name().to_owned()), fault);
            let info = ValueInfo::new(input).map_err(|fault| wrong(self, fault))?;
            let value = self.graph_input(input.name(), input.name(), &info.ty).map_err(|fail| match fail {
                Fail::Reason(reason) => wrong(self, Fault::ValueType(reason)),
                other => other,
            })?;
            self.scopes.set(input.name(), value);
        }
        let opsets = Rc::new(self.model.opsets.clone());
        self.body(proto, &opsets, None)?;
        if !self.unsupported.is_empty() {
            return Ok(());
        }
        for output in &proto.output {
            let missing = || self.fault(Subject::Value(output.name().to_owned()), Fault::NoValue);
            let value = self.scopes.get(output.name()).ok_or_else(missing)?;
            self.name = output.name().to_owned();
            self.graph_output(output.name(), &value)?;
        }
        Ok(())
    }

    fn graph_input(&mut self, input: &str, name: &str, ty: &OnnxType) -> Res<Value> {
        Ok(match ty {
            OnnxType::Tensor { dtype, shape } => {
                let shape = match (self.options.shapes.get(name), shape) {
                    (Some(shape), _) => shape.clone(),
                    (None, Some(shape)) => {
                        // Elements of a sequence have extents of their own.
                        let own = name != input;
                        let unnamed = |extent: &Extent| match extent {
                            Extent::Named(_) if own => Extent::Unknown,
                            other => other.clone(),
                        };
                        let shape: Vec<Extent> = shape.iter().map(unnamed).collect();
                        shape.iter().enumerate().map(|(i, extent)| self.extent(name, i, extent)).collect()
                    }
                    (None, None) => {
                        return Err(format!("{ty}, whose number of extents is unknown: give its shape").into());
                    }
                };
                let kept = if matches!(dtype, DType::I4 | DType::U4) { held(*dtype) } else { *dtype };
                let graph = &mut self.level().graph;
                let mut id = graph.input(name, kept, &shape);
                if kept != held(*dtype) {
                    let cast = core_tensor::op::Cast { to: held(*dtype) };
                    id = graph.add(name, core_tensor::op::Op::Cast(cast), &[id])?;
                }
                Value::Tensor(self.known(id, *dtype, shape, None))
            }
            OnnxType::Sequence(element) => {
                let Some(len) = self.options.sequences.get(name).copied() else {
                    return Err(format!("{ty}: give its length").into());
                };
                let all: Res<Vec<Value>> =
                    (0..len).map(|i| self.graph_input(input, &format!("{name}.{i}"), element)).collect();
                Value::Sequence(all?.into())
            }
            OnnxType::Optional(element) if self.options.present.contains(name) => {
                Value::Optional(Some(self.graph_input(input, name, element)?.into()))
            }
            OnnxType::Optional(_) => Value::Optional(None),
            OnnxType::Other(_) | OnnxType::Unknown => return Err(ty.to_string().into()),
        })
    }

    fn extent(&mut self, input: &str, index: usize, extent: &Extent) -> Dim {
        let name = match extent {
            Extent::Number(n) => return Dim::Num(*n),
            Extent::Named(name) => name.clone(),
            Extent::Unknown => format!("{input}.{index}"),
        };
        let bound = self.options.extents.get(&name);
        self.symbols.insert(name.clone());
        bound.map_or_else(|| Dim::sym(&name), Dim::Num)
    }

    fn graph_output(&mut self, name: &str, value: &Value) -> Res<()> {
        match value {
            Value::Tensor(operand) => {
                let id = self.output_value(operand)?;
                let level = self.level();
                let taken = level.graph.outputs().contains(&id)
                    || !matches!(level.graph.value(id).source, core_tensor::ValueSource::Node);
                let id = if taken {
                    // Each output has its own value and name.
                    let shape = operand.shape().to_vec();
                    level.graph.add(name, core_tensor::op::Op::Reshape(core_tensor::op::Reshape { shape }), &[id])?
                } else {
                    id
                };
                level.graph.rename(id, name);
                level.graph.output(id);
                Ok(())
            }
            Value::Sequence(all) => {
                all.iter().enumerate().try_for_each(|(i, value)| self.graph_output(&format!("{name}.{i}"), value))
            }
            Value::Optional(Some(value)) => self.graph_output(name, value),
            Value::Optional(None) => Ok(()),
            Value::Strings => {
                Err(self.fault(Subject::Value(name.to_owned()), Fault::ValueType("an output of strings".into())))
            }
        }
    }

    /// The value of an operand in the innermost graph, in the dtype that the model declares.
    pub(crate) fn output_value(&mut self, operand: &Operand) -> Res<ValueId> {
        let id = self.id(operand)?;
        if matches!(operand.dtype(), DType::F16 | DType::BF16) {
            let name = self.name.clone();
            let cast = core_tensor::op::Op::Cast(core_tensor::op::Cast { to: operand.dtype() });
            return Ok(self.level().graph.add(&name, cast, &[id])?);
        }
        Ok(id)
    }

    /// Lowers initializers and nodes of a graph whose inputs are in scope.
    pub(crate) fn body(
        &mut self,
        proto: &'a GraphProto,
        opsets: &Opsets,
        function: Option<Environment<'a>>,
    ) -> Res<()> {
        for tensor in &proto.initializer {
            let wrong = |lower: &Self, fault| lower.fault(Subject::Tensor(tensor.name().to_owned()), fault);
            let data = self.model.tensors().read(tensor).map_err(|fault| wrong(self, fault))?;
            let value = self.data(data, tensor.name())?;
            if !self.scopes.set(tensor.name(), value) {
                let fault = Fault::Twice { what: "tensor", name: tensor.name().to_owned() };
                return Err(wrong(self, fault));
            }
        }
        for sparse in &proto.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |values| values.name());
            let wrong = |lower: &Self, fault| lower.fault(Subject::Tensor(name.to_owned()), fault);
            let tensor = self.model.tensors().sparse(sparse).map_err(|fault| wrong(self, fault))?;
            let value = self.data(TensorData::Tensor(tensor), name)?;
            self.scopes.set(name, value);
        }
        self.nodes(&proto.node, opsets, function)
    }

    /// The value of stored data.
    pub(crate) fn data(&mut self, data: TensorData, name: &str) -> Res<Value> {
        Ok(match data {
            TensorData::Tensor(tensor) => Value::Tensor(self.constant(tensor, name)),
            TensorData::Strings { .. } => Value::Strings,
        })
    }

    fn nodes(&mut self, nodes: &'a [NodeProto], opsets: &Opsets, function: Option<Environment<'a>>) -> Res<()> {
        for node in nodes {
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                return Err(self.fault(Subject::Model, Fault::Growth { limit: MAX_NODES }));
            }
            self.node(node, opsets, function.clone())?;
        }
        Ok(())
    }

    fn place(&self, node: &NodeProto, opset: i64) -> NodePlace {
        let named = [node.name()].into_iter().chain(node.output.iter().map(|name| &**name));
        NodePlace {
            node: named.into_iter().find(|name| !name.is_empty()).unwrap_or_default().to_owned(),
            operator: node.op_type().to_owned(),
            domain: match domain_name(node.domain()) {
                "" => "ai.onnx".to_owned(),
                domain => domain.to_owned(),
            },
            opset,
        }
    }

    fn node(&mut self, node: &'a NodeProto, opsets: &Opsets, function: Option<Environment<'a>>) -> Res<()> {
        let domain = domain_name(node.domain());
        let called = self.model.functions.get(&self.model.proto, domain, node.op_type(), node.overload());
        let opset = match opsets.get(domain) {
            Some(opset) => *opset,
            // Functions of a domain that nobody imports, and exporters that forget com.microsoft.
            None if called.is_some() || domain == "com.microsoft" => 1,
            None => {
                let fault = Fault::NoOpset { domain: self.place(node, 0).domain };
                return Err(self.fault(Subject::Model, fault));
            }
        };
        let place = self.place(node, opset);
        let placed = |lower: &Self, fail: Fail| match fail {
            Fail::Placed(error) => Fail::Placed(error),
            Fail::Reason(reason) => {
                let (path, at) = (lower.model.path().to_owned(), Box::new(place.clone()));
                OnnxError::Node { path, at, reason }.into()
            }
            fail @ (Fail::Unsupported | Fail::Lacking) => fail,
        };
        let mut inputs = Vec::with_capacity(node.input.len());
        let mut lacking = false;
        for name in &node.input {
            match self.scopes.get(name) {
                _ if name.is_empty() || self.scopes.is_left_out(name) => inputs.push(None),
                Some(value) => inputs.push(Some(value)),
                // What an unsupported operator would give: go on to find the others.
                None if !self.unsupported.is_empty() => lacking = true,
                None => {
                    let reason = format!("nothing gives its input '{}'", name.escape_debug());
                    return Err(placed(self, reason.into()));
                }
            }
        }
        let first = node.output.iter().find(|name| !name.is_empty()).map_or(node.name(), |name| name);
        self.name = first.to_owned();
        let attributes = Attributes::new(&node.attribute, function);
        let call = Call { proto: node, opset, opsets: opsets.clone(), attributes, inputs };
        let lowering = ops::find(domain, node.op_type(), opset);
        let outputs = match (called, lowering) {
            (None, None) => Err(Fail::Unsupported),
            _ if lacking => return Ok(()),
            (Some((index, _)), _) => self.function(index, &call),
            (None, Some(lowering)) => lowering(self, &call),
        };
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(Fail::Unsupported) => {
                let key = (place.domain.clone(), place.operator.clone(), opset);
                self.unsupported.entry(key).or_insert(UnsupportedOperator { at: place, nodes: 0 }).nodes += 1;
                return Ok(());
            }
            Err(Fail::Lacking) => return Ok(()),
            Err(fail) => return Err(placed(self, fail)),
        };
        for (i, name) in node.output.iter().enumerate() {
            if name.is_empty() {
                continue;
            }
            let Some(value) = outputs.get(i) else {
                if !self.unsupported.is_empty() {
                    continue;
                }
                return Err(placed(self, format!("it has no output {i}").into()));
            };
            if !self.scopes.set(name, value.clone()) {
                return Err(placed(self, format!("its output '{}' has been given before", name.escape_debug()).into()));
            }
        }
        Ok(())
    }

    /// Inlines a call of a function.
    fn function(&mut self, index: usize, call: &Call<'a>) -> Res<Vec<Value>> {
        let model = self.model;
        let Some(function) = model.proto.functions.get(index) else { return Err(Fail::Unsupported) };
        let wrong = |lower: &Self, fault| lower.fault(Subject::Function(function.name().to_owned()), fault);
        if self.functions.contains(&index) {
            let by = self.functions.iter().rev().filter_map(|index| model.proto.functions.get(*index));
            let by: Vec<&str> = by.map(|function| function.name()).take(4).collect();
            return Err(wrong(self, Fault::Recursion(by.join(", "))));
        }
        self.deeper()?;
        let versions = Rc::new(opsets(&function.opset_import).map_err(|fault| wrong(self, fault))?);
        let mut environment: HashMap<&str, &crate::proto::AttributeProto> =
            function.attribute_proto.iter().map(|attribute| (attribute.name(), attribute)).collect();
        environment.extend(call.attributes.all());
        self.functions.push(index);
        let outer = self.scopes.isolate();
        for (i, name) in function.input.iter().enumerate() {
            if let Some(value) = call.value(i) {
                self.scopes.set(name, value.clone());
            } else {
                self.scopes.leave_out(name);
            }
        }
        let result = self.nodes(&function.node, &versions, Some(environment.into())).and_then(|()| {
            let missing = |name: &str| format!("the function gives no '{}'", name.escape_debug());
            let get = |name: &String| self.scopes.get(name).ok_or_else(|| Fail::from(missing(name)));
            if self.unsupported.is_empty() { function.output.iter().map(get).collect() } else { Ok(Vec::new()) }
        });
        self.scopes.restore(outer);
        self.functions.pop();
        self.depth -= 1;
        result
    }

    /// Counts one graph or function more within another.
    pub(crate) fn deeper(&mut self) -> Res<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("graphs and functions lie more than {MAX_DEPTH} deep in each other").into());
        }
        Ok(())
    }

    /// The innermost graph.
    pub(crate) fn level(&mut self) -> &mut Level {
        if self.levels.is_empty() {
            self.levels.push(Level::new(""));
        }
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    pub(crate) fn next_key(&mut self) -> u32 {
        self.keys += 1;
        self.keys
    }

    /// A symbol of its own.
    pub(crate) fn fresh(&mut self, name: &str) -> Dim {
        let mut symbol = name.to_owned();
        if self.symbols.contains(&symbol) {
            // Where the last one left off: a function's symbols come back with each call.
            let n = self.last_symbol.entry(name.to_owned()).or_insert(1);
            while self.symbols.contains(&symbol) {
                *n += 1;
                symbol = format!("{name}'{n}");
            }
        }
        self.symbols.insert(symbol.clone());
        Dim::sym(&symbol)
    }

    /// An operand for a value of the innermost graph.
    pub(crate) fn known(&mut self, id: ValueId, dtype: DType, shape: Vec<Dim>, ints: Option<Vec<SymInt>>) -> Operand {
        let key = self.next_key();
        self.level().known.insert(key, id);
        Operand::node(key, dtype, shape, ints)
    }

    /// A constant.
    pub(crate) fn constant(&mut self, tensor: Tensor, name: &str) -> Operand {
        let key = self.next_key();
        Operand::constant(key, tensor.dtype(), tensor, name)
    }
}
