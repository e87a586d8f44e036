//! A graph whose weights are inputs: what is trained.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use core_tensor::op::{Binary, MatMul, Op};
use core_tensor::{DType, Dim, Graph, Rewriter, Tensor, ValueId, ValueSource, Weight};

use super::bytes::{I8Rows, encode_i8};
use super::integers::{I4Groups, Matrix, encode_i4};
use super::latent::LatentIntegers;
use super::site::{Kind, Site, sites};
use super::{GraphOptions, GraphQuantError, GraphType};
use crate::reconstruct::{Adam, Rates};

/// Weights that came to be elsewhere than in their encoder.
#[derive(Clone, Debug)]
pub enum Trained {
    /// Of 8 bits.
    Bytes(I8Rows),
    /// Of 4 bits.
    Groups(I4Groups),
}

/// A weight, and how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    weight: ValueId,
    /// Whether rows of it are taken: such a reading of a weight is not trained.
    table: bool,
}

/// A graph in which what is trained are inputs behind its own, all f32.
#[derive(Debug)]
pub struct Opened {
    /// The graph.
    pub graph: Graph,
    /// The inputs that stand for matrices and vectors, in order.
    pub parameters: Vec<ValueId>,
    members: Vec<Member>,
}

/// One parameter.
#[derive(Debug)]
struct Member {
    /// The weight that it stands for.
    weight: ValueId,
    shape: Vec<usize>,
    state: State,
}

#[derive(Debug)]
enum State {
    Integers { latent: Box<LatentIntegers>, ty: GraphType },
    Vector { values: Vec<f32>, adam: Adam, size: f32 },
}

/// The nodes whose vectors are trained, by the place of the vector among their inputs.
fn has_vector(op: &Op, place: usize) -> bool {
    match op {
        Op::Binary(Binary::Add) => true,
        Op::LayerNormalization(_) => place > 0,
        Op::Conv(_) => place == 2,
        _ => false,
    }
}

/// Opens a graph: matrices of products and convolutions as the options would round them, biases and the vectors of normalizations.
///
/// Tables are rounded, and stay. Matrices of products are `[outputs, inputs]` in the opened graph.
///
/// # Errors
/// When there is nothing to quantize, a weight cannot be read or is read as it lies and transposed, or the options ask for zero points or one scale for all, which
/// are not trained.
pub fn open(graph: &Graph, options: &GraphOptions) -> Result<Opened, GraphQuantError> {
    let sites = sites(graph, options)?;
    let by_node: HashMap<usize, Site> = sites.iter().map(|site| (site.node, *site)).collect();
    let mut rewriter = Rewriter::new(graph);
    let mut members: Vec<Member> = Vec::new();
    let mut parameters = Vec::new();
    // Matrices by their weights, and tables.
    let mut known: BTreeMap<Place, ValueId> = BTreeMap::new();
    let mut kinds: HashMap<ValueId, Kind> = HashMap::new();
    for site in &sites {
        let place = Place { weight: site.weight, table: site.kind == Kind::Table };
        let name = &graph.value(site.weight).name;
        if known.contains_key(&place) {
            if !place.table && kinds.get(&site.weight) != Some(&site.kind) {
                let reason = "it is read in two ways, and is not trained for both".to_owned();
                return Err(GraphQuantError::Observation { name: name.clone(), reason });
            }
            continue;
        }
        if !place.table {
            kinds.insert(site.weight, site.kind);
        }
        let matrix = site.matrix(graph)?;
        let stored = graph.weight_of(site.weight).map(|weight| weight.shape().to_vec()).unwrap_or_default();
        let shape = if matches!(site.kind, Kind::Product { .. }) { vec![matrix.rows, matrix.columns] } else { stored };
        let rounded = round(&matrix, site, options);
        if place.table {
            let values = match &rounded {
                Trained::Bytes(rows) => rows.decode(matrix.columns),
                Trained::Groups(groups) => groups.decode(),
            };
            let weight = Weight::stored(Tensor::from_slice(&shape, &values)?);
            known.insert(place, rewriter.graph().weight(&format!("{name}.rounded"), weight));
            continue;
        }
        let latent = match &rounded {
            Trained::Bytes(rows) => LatentIntegers::from_bytes(&matrix, rows),
            Trained::Groups(groups) => LatentIntegers::from_groups(&matrix, groups),
        };
        let reason = "zero points and one scale for all are not trained".to_owned();
        let latent = latent.ok_or_else(|| GraphQuantError::Observation { name: name.clone(), reason })?;
        let dims: Vec<Dim> = shape.iter().map(|n| Dim::Num(*n)).collect();
        let input = rewriter.graph().input(&format!("{name}.trained"), DType::F32, &dims);
        known.insert(place, input);
        parameters.push(input);
        let state = State::Integers { latent: Box::new(latent), ty: options.ty };
        members.push(Member { weight: site.weight, shape, state });
    }
    for id in vectors(graph) {
        let Some(weight) = graph.weight_of(id) else { continue };
        let name = &graph.value(id).name;
        let values = weight.rows_f32(0..weight.row_count());
        let values = values.map_err(|source| GraphQuantError::Weight { name: name.clone(), source })?;
        let input = rewriter.graph().input(&format!("{name}.trained"), DType::F32, &[values.len().into()]);
        rewriter.map(id, input);
        parameters.push(input);
        let size = values.iter().map(|x| x.abs()).sum::<f32>() / values.len().max(1) as f32;
        let adam = Adam::new(values.len());
        members.push(Member { weight: id, shape: vec![values.len()], state: State::Vector { values, adam, size } });
    }
    for (at, node) in graph.nodes().iter().enumerate() {
        let Some(site) = by_node.get(&at) else {
            rewriter.copy(node)?;
            continue;
        };
        let place = Place { weight: site.weight, table: site.kind == Kind::Table };
        let mut inputs: Vec<Option<ValueId>> =
            node.inputs.iter().map(|id| id.filter(|id| *id != site.weight).map(|id| rewriter.get(id))).collect();
        let at = usize::from(!place.table);
        if let Some(input) = inputs.get_mut(at) {
            *input = known.get(&place).copied();
        }
        let op = match node.op {
            Op::MatMul(_) => Op::MatMul(MatMul { transpose_b: true }),
            ref op => op.clone(),
        };
        let outputs = rewriter.graph().add_node(&node.name, op, inputs)?;
        for (old, new) in node.outputs.iter().zip(outputs) {
            rewriter.map(*old, new);
        }
    }
    let opened = rewriter.finish();
    opened.verify()?;
    Ok(Opened { graph: opened, parameters, members })
}

/// As the options would, but for what needs calibration.
fn round(matrix: &Matrix, site: &Site, options: &GraphOptions) -> Trained {
    match options.ty {
        GraphType::Int4 { group } => {
            let group = if matrix.columns.is_multiple_of(group) { group } else { 32 };
            Trained::Groups(encode_i4(matrix, group, None, options.threads))
        }
        _ => {
            let mut how = options.bytes();
            how.per_tensor &= site.kind != Kind::Table;
            how.asymmetric &= site.kind != Kind::Table;
            Trained::Bytes(encode_i8(matrix, &how, None, None))
        }
    }
}

/// Vectors of f32 that nothing reads but what their gradients are known of.
fn vectors(graph: &Graph) -> Vec<ValueId> {
    let is_vector = |id: ValueId| {
        matches!(graph.value(id).source, ValueSource::Weight(_))
            && graph
                .tensor_type(id)
                .is_some_and(|(dtype, shape)| dtype == DType::F32 && matches!(shape, [Dim::Num(n)] if *n > 1))
    };
    let mut readers: BTreeMap<ValueId, bool> = BTreeMap::new();
    for node in graph.nodes() {
        for (place, id) in node.inputs.iter().enumerate() {
            if let Some(id) = id.filter(|id| is_vector(*id)) {
                *readers.entry(id).or_insert(true) &= has_vector(&node.op, place);
            }
        }
    }
    for id in graph.outputs() {
        readers.remove(id);
    }
    readers.into_iter().filter(|(_, all)| *all).map(|(id, _)| id).collect()
}

impl Opened {
    /// What the graph computes with, in the order of the parameters.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn tensors(&self) -> Result<Vec<Tensor>, GraphQuantError> {
        let mut tensors = Vec::with_capacity(self.members.len());
        for member in &self.members {
            tensors.push(match &member.state {
                State::Integers { latent, .. } => {
                    let mut values = vec![0.0; latent.len()];
                    latent.decode(&mut values);
                    Tensor::from_slice(&member.shape, &values)?
                }
                State::Vector { values, .. } => Tensor::from_slice(&member.shape, values)?,
            });
        }
        Ok(tensors)
    }

    /// A step against the gradients by the parameters; vectors move by `vectors`, relative to their size. What is done on `threads` threads depends on none.
    pub fn step(&mut self, gradients: &[Vec<f32>], rates: Rates, vectors: f32, threads: usize) {
        let mut pairs = self.members.iter_mut().zip(gradients);
        let next = Mutex::new(&mut pairs);
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    while let Some((member, gradient)) = next.lock().ok().and_then(|mut pairs| pairs.next()) {
                        match &mut member.state {
                            State::Integers { latent, .. } => latent.step(gradient, rates),
                            State::Vector { values, adam, size } => adam.step(values, gradient, vectors * *size),
                        }
                    }
                });
            }
        });
    }

    /// The graph that was opened with the trained vectors, and the integers by its weights.
    ///
    /// # Errors
    /// When a tensor cannot be made, or the graph is another.
    pub fn finish(self, graph: &Graph) -> Result<(Graph, BTreeMap<ValueId, Trained>), GraphQuantError> {
        let mut rewriter = Rewriter::new(graph);
        let mut integers = Vec::new();
        for member in self.members {
            match member.state {
                State::Integers { latent, ty: GraphType::Int4 { .. } } => {
                    integers.push((member.weight, Trained::Groups(latent.into_groups())));
                }
                State::Integers { latent, .. } => integers.push((member.weight, Trained::Bytes(latent.into_bytes()))),
                State::Vector { values, .. } => {
                    let weight = Weight::stored(Tensor::from_slice(&member.shape, &values)?);
                    let new = rewriter.graph().weight(&graph.value(member.weight).name, weight);
                    rewriter.map(member.weight, new);
                }
            }
        }
        for node in graph.nodes() {
            let outputs = rewriter.copy(node)?;
            for (old, new) in node.outputs.iter().zip(outputs) {
                rewriter.graph().rename(new, &graph.value(*old).name);
            }
        }
        let trained = integers.into_iter().map(|(weight, integers)| (rewriter.get(weight), integers)).collect();
        Ok((rewriter.finish(), trained))
    }
}
