//! Weights on the device: repacked on their way through the staging ring, in arenas that are freed as a whole.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use core_tensor::{BackendError, DType, Graph, Progress, ValueId, Weight, WeightError, Weights};

use crate::analysis::{Analysis, MatrixKey};
use crate::filters::{Filter, FilterKey, PlacedFilter};
use crate::layout::{BLOCK, Format, TILE, TileMut, pack_row};
use crate::vk::{DeviceBuffer, Gpu, Limits, Uploader};

/// Bytes of one arena, if an allocation may be that large.
const ARENA: u64 = 1 << 30;
/// Alignment of everything in an arena.
const ALIGNMENT: u64 = 256;

/// Bytes in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) arena: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Some tiles of a matrix, each array of which a kernel can bind as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) first_tile: usize,
    pub(crate) tiles: usize,
    /// Units, scales, high bits, super-blocks; empty ones have length 0.
    pub(crate) parts: [Extent; 4],
}

/// A matrix in the tiled layout.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(crate) format: Format,
    /// Rows; of a gated pair those of one side.
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// Blocks along k.
    pub(crate) blocks: usize,
    pub(crate) paired: bool,
    pub(crate) chunks: Vec<Chunk>,
}

impl Matrix {
    /// The largest value of k for which the sums of blocks fit into shared memory.
    pub(crate) const LARGEST_K: usize = 4096 * BLOCK;

    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE) * if self.paired { 2 } else { 1 }
    }
}

/// Where a model's weights will lie on a device: known before anything is allocated.
#[derive(Debug)]
pub(crate) struct WeightPlan {
    pub(crate) analysis: Analysis,
    pub(crate) matrices: BTreeMap<MatrixKey, Matrix>,
    pub(crate) filters: BTreeMap<FilterKey, PlacedFilter>,
    pub(crate) plain: BTreeMap<ValueId, Extent>,
    /// Bytes of each arena.
    pub(crate) arenas: Vec<u64>,
}

/// A model's weights on a device.
pub(crate) struct GpuWeights {
    pub(crate) graph: Arc<Graph>,
    pub(crate) plan: WeightPlan,
    pub(crate) arenas: Vec<Arc<DeviceBuffer>>,
    pub(crate) gpu: Arc<Gpu>,
}

impl Weights for GpuWeights {
    fn byte_len(&self) -> u64 {
        self.arenas.iter().map(|arena| arena.len()).sum()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Hands out bytes of arenas before they are allocated.
struct Planner {
    limit: u64,
    arenas: Vec<u64>,
}

impl Planner {
    fn take(&mut self, len: u64) -> Extent {
        if self.arenas.last().is_none_or(|used| used.saturating_add(len) > self.limit) {
            self.arenas.push(0);
        }
        let arena = self.arenas.len() - 1;
        let offset = self.arenas[arena];
        self.arenas[arena] = (offset + len).next_multiple_of(ALIGNMENT);
        Extent { arena, offset, len }
    }
}

fn failed(name: &str) -> impl Fn(WeightError) -> BackendError + '_ {
    move |source| BackendError::Weight { name: name.to_owned(), source }
}

impl WeightPlan {
    /// Plans where each weight lies on a device with these limits; `device` is its name, for messages. No weight is read.
    ///
    /// # Errors
    /// When a weight cannot be held.
    pub(crate) fn new(device: &str, limits: &Limits, graph: &Graph) -> Result<WeightPlan, BackendError> {
        let analysis = Analysis::new(graph);
        let mut planner = Planner { limit: ARENA.min(limits.max_allocation), arenas: Vec::new() };
        let mut matrices = BTreeMap::new();
        for key in &analysis.matrices {
            matrices.insert(*key, plan_matrix(device, limits, graph, *key, &mut planner)?);
        }
        let mut filters = BTreeMap::new();
        for key in &analysis.filters {
            let filter = Filter::found(graph, *key)?;
            let len = filter.byte_len().map_or(u64::MAX, |len| len as u64);
            if len > limits.max_range.min(planner.limit - ALIGNMENT) {
                return Err(too_large(device, limits, graph, key.weight, len));
            }
            // Scalar loads take 32 bytes at once.
            let extent = planner.take(len.max(32).next_multiple_of(32));
            filters.insert(*key, PlacedFilter { filter, extent });
        }
        let mut plain = BTreeMap::new();
        for id in &analysis.plain {
            let Some(weight) = graph.weight_of(*id) else { continue };
            let len = weight.byte_len() as u64;
            if len > limits.max_range.min(limits.max_allocation) {
                return Err(too_large(device, limits, graph, *id, len));
            }
            plain.insert(*id, planner.take(len.max(16).next_multiple_of(16)));
        }
        let limit = planner.limit;
        let arenas = planner.arenas.into_iter().map(|bytes| bytes.min(limit)).collect();
        Ok(WeightPlan { analysis, matrices, filters, plain, arenas })
    }
}

impl GpuWeights {
    /// Plans where each weight lies, allocates the arenas, and streams the weights into them.
    ///
    /// # Errors
    /// When a weight cannot be read or held, or `progress` cancels.
    pub(crate) fn load(
        gpu: &Arc<Gpu>,
        graph: &Arc<Graph>,
        progress: &mut Progress<'_>,
    ) -> Result<GpuWeights, BackendError> {
        let plan = WeightPlan::new(gpu.name(), gpu.limits(), graph)?;
        let allocate = |bytes: &u64| DeviceBuffer::new(gpu, "weights", *bytes).map(Arc::new);
        let arenas = plan.arenas.iter().map(allocate).collect::<Result<Vec<_>, _>>()?;
        let weights = GpuWeights { graph: graph.clone(), plan, arenas, gpu: gpu.clone() };
        weights.stream(progress)?;
        Ok(weights)
    }

    fn stream(&self, progress: &mut Progress<'_>) -> Result<(), BackendError> {
        let total: u64 = self.graph.weights().map(|(_, weight)| weight.byte_len() as u64).sum();
        let mut done = 0;
        let mut tell = |bytes: u64| {
            done = (done + bytes).min(total);
            if progress(done, total).is_break() { Err(BackendError::Cancelled) } else { Ok(()) }
        };
        let mut uploader = Uploader::new(&self.gpu)?;
        for (key, matrix) in &self.plan.matrices {
            self.stream_matrix(*key, matrix, &mut uploader, &mut tell)?;
        }
        for (key, PlacedFilter { filter, extent }) in &self.plan.filters {
            let Some(weight) = self.graph.weight_of(key.weight) else { continue };
            let name = &self.graph.value(key.weight).name;
            let tensor = weight.to_tensor().map_err(failed(name))?;
            let values = tensor.to_f32().map_err(core_tensor::op::OpError::from)?;
            let mut at = extent.offset;
            for bytes in filter.tiles_of(&values) {
                for piece in bytes.chunks(Uploader::CAPACITY) {
                    uploader.write(&self.arenas[extent.arena], at, piece.len(), |out| {
                        out.copy_from_slice(piece);
                        Ok::<(), BackendError>(())
                    })?;
                    at += piece.len() as u64;
                }
            }
            tell(weight.byte_len() as u64)?;
            weight.release_rows(0..weight.row_count());
        }
        for (id, extent) in &self.plan.plain {
            let (Some(weight), name) = (self.graph.weight_of(*id), &self.graph.value(*id).name) else { continue };
            let tensor = weight.to_tensor().map_err(failed(name))?;
            for (i, chunk) in tensor.bytes().chunks(Uploader::CAPACITY).enumerate() {
                let at = extent.offset + (i * Uploader::CAPACITY) as u64;
                uploader.write(&self.arenas[extent.arena], at, chunk.len().next_multiple_of(4), |out| {
                    out[..chunk.len()].copy_from_slice(chunk);
                    Ok::<(), BackendError>(())
                })?;
            }
            tell(weight.byte_len() as u64)?;
            weight.release_rows(0..weight.row_count());
        }
        uploader.finish()
    }

    fn stream_matrix(
        &self,
        key: MatrixKey,
        matrix: &Matrix,
        uploader: &mut Uploader,
        tell: &mut dyn FnMut(u64) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let name = &self.graph.value(key.weight).name;
        let missing = || BackendError::Mismatch("weights and graph");
        let gate = self.graph.weight_of(key.weight).ok_or_else(missing)?;
        let up = key.up.map(|id| self.graph.weight_of(id).ok_or_else(missing)).transpose()?;
        let turned = key.transposed.then(|| transpose(gate)).transpose().map_err(failed(name))?;
        let tile_bytes = matrix.format.tile_bytes(matrix.blocks);
        let mut scratch = tile_bytes.map(|bytes| vec![0u8; bytes]);
        for chunk in &matrix.chunks {
            for tile in 0..chunk.tiles {
                let number = chunk.first_tile + tile;
                let (weight, first) = match up {
                    Some(up) => (if number.is_multiple_of(2) { gate } else { up }, number / 2 * TILE),
                    None => (gate, number * TILE),
                };
                let rows = first..(first + TILE).min(matrix.rows);
                scratch.iter_mut().for_each(|part| part.fill(0));
                let [units, scales, high, supers] = &mut scratch;
                let mut out = TileMut { units, scales, high, supers };
                let row_bytes = weight.row_bytes();
                if let Some(turned) = &turned {
                    let bytes = turned.len() / matrix.rows.max(1);
                    for (lane, row) in rows.clone().enumerate() {
                        pack_row(matrix.format, &turned[row * bytes..(row + 1) * bytes], lane, &mut out);
                    }
                } else {
                    let source = weight.rows(rows.clone()).map_err(failed(name))?;
                    for (lane, row) in source.chunks_exact(row_bytes.max(1)).enumerate() {
                        pack_row(matrix.format, row, lane, &mut out);
                    }
                }
                for (part, bytes) in scratch.iter().enumerate() {
                    let extent = chunk.parts[part];
                    for (i, piece) in bytes.chunks(Uploader::CAPACITY).enumerate() {
                        let at = extent.offset + (tile * bytes.len() + i * Uploader::CAPACITY) as u64;
                        uploader.write(&self.arenas[extent.arena], at, piece.len(), |out| {
                            out.copy_from_slice(piece);
                            Ok::<(), BackendError>(())
                        })?;
                    }
                }
                tell((rows.len() * row_bytes) as u64)?;
                if turned.is_none() {
                    weight.release_rows(rows);
                }
            }
        }
        Ok(())
    }
}

fn too_large(device: &str, limits: &Limits, graph: &Graph, id: ValueId, bytes: u64) -> BackendError {
    let most = limits.max_range.min(limits.max_allocation);
    let name = &graph.value(id).name;
    BackendError::Device(format!("{device}: weight {name:?} of {bytes} bytes does not fit a range of {most}"))
}

/// Cuts a matrix into chunks whose every array fits a binding and an arena.
fn plan_matrix(
    device: &str,
    limits: &Limits,
    graph: &Graph,
    key: MatrixKey,
    planner: &mut Planner,
) -> Result<Matrix, BackendError> {
    let weight = graph.weight_of(key.weight).ok_or(BackendError::Mismatch("weights and graph"))?;
    let format = Format::of(weight.dtype()).ok_or(BackendError::Mismatch("weights and formats"))?;
    let (first, last) = (weight.row_count(), weight.row_len());
    let (rows, k) = if key.transposed { (last, first) } else { (first, last) };
    let blocks = k.div_ceil(BLOCK);
    let mut matrix = Matrix { format, rows, k, blocks, paired: key.up.is_some(), chunks: Vec::new() };
    let tile = format.tile_bytes(blocks);
    let limit = limits.max_range.min(planner.limit - ALIGNMENT) as usize;
    let largest = tile.into_iter().max().unwrap_or(0);
    if largest > limit {
        return Err(too_large(device, limits, graph, key.weight, largest as u64));
    }
    let mut most = (limit / largest.max(1)).max(1);
    if matrix.paired {
        most = (most / 2 * 2).max(2);
        if largest * 2 > limit {
            return Err(too_large(device, limits, graph, key.weight, 2 * largest as u64));
        }
    }
    let tiles = matrix.tiles();
    let mut first_tile = 0;
    while first_tile < tiles {
        let count = most.min(tiles - first_tile);
        let parts = tile.map(|bytes| planner.take((bytes * count) as u64));
        matrix.chunks.push(Chunk { first_tile, tiles: count, parts });
        first_tile += count;
    }
    Ok(matrix)
}

/// The bytes of a float matrix with rows and columns exchanged.
fn transpose(weight: &Weight) -> Result<Vec<u8>, WeightError> {
    let size = match weight.dtype() {
        DType::F32 => 4,
        _ => 2,
    };
    let (rows, columns) = (weight.row_count(), weight.row_len());
    let tensor = weight.to_tensor()?;
    let bytes = tensor.bytes();
    let mut out = vec![0u8; bytes.len()];
    for row in 0..rows {
        for column in 0..columns {
            let (from, to) = ((row * columns + column) * size, (column * rows + row) * size);
            out[to..to + size].copy_from_slice(&bytes[from..from + size]);
        }
    }
    Ok(out)
}
