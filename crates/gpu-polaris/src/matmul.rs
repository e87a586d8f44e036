//! Matrix products: which kernel, on what grid.

use core_tensor::{BackendError, DType, Dim};

use crate::compile::Compiler;
use crate::elementwise::Function;
use crate::layout::{BLOCK, Format};
use crate::plan::{Access, Dispatch, Memory};
use crate::step::{Grid, least, product};
use crate::weights::{Chunk, Matrix};

/// What a product is added to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Epilogue {
    pub(crate) bias: Option<Memory>,
    pub(crate) residual: Option<Memory>,
    /// Code of the activation between the sides of a gated pair, plus 1; 0: both sides are stored as they are.
    pub(crate) gated: u32,
    /// A function of the result; before the residual if `function_first`.
    pub(crate) function: Option<Function>,
    pub(crate) function_first: bool,
}

/// Matrices that are computed, in the layout of f32 weights.
#[derive(Clone, Debug)]
pub(crate) struct ComputedMatrix {
    pub(crate) memory: Memory,
    /// Rows of each.
    pub(crate) n: Dim,
    /// Blocks along k.
    pub(crate) blocks: Dim,
    /// How many there are; 1: all rows of activations are multiplied by it.
    pub(crate) there: Dim,
    /// How many products there are.
    pub(crate) matrices: Dim,
}

/// Columns (rows of activations) that a kernel takes at once, for at most so many rows and so many tiles of weights, on a device that `waves` waves
/// keep busy. Large tiles spend the most on multiply-adds; where they make too few waves, smaller ones keep more of the device busy.
pub(crate) fn columns(rows: usize, tiles: usize, waves: usize) -> usize {
    let fills = |columns: usize, per_lane: usize| {
        rows.div_ceil(columns).saturating_mul(tiles.div_ceil(per_lane)) >= (waves / 7).max(4)
    };
    match rows {
        0 | 1 => 1,
        2 => 2,
        3 | 4 => 4,
        5..=8 => 8,
        _ if fills(32, 3) => 32,
        _ if fills(8, 4) => 8,
        _ => 4,
    }
}

/// Rows of weights that a lane takes, and threads of a workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) threads: u32,
}

impl Shape {
    /// The kernel for a matrix of so many tiles and blocks. A card is kept busy by `waves` waves; more than the tiles give come from parts of k.
    pub(crate) fn new(
        format: Format,
        columns: usize,
        tiles: usize,
        blocks: usize,
        paired: bool,
        waves: usize,
    ) -> Shape {
        // Blocks of floats take so many registers that two rows of them are enough.
        let narrow = !matches!(format, Format::F32 | Format::F16 | Format::BF16);
        let rows = match columns {
            1 if tiles >= 4 * waves && narrow => 4,
            1 if paired || tiles >= 2 => 2,
            1 => 1,
            2 | 4 => 2,
            8 => 4,
            _ => 3,
        };
        let slices = if columns == 1 {
            let wanted = waves.div_ceil(tiles.div_ceil(rows).max(1)).min(blocks / 4).clamp(1, 8);
            1 << wanted.ilog2()
        } else {
            1
        };
        Shape { rows, columns, threads: 64 * slices }
    }
}

impl Compiler<'_> {
    /// Dispatches `y = x·Wᵀ` over packed `x` (tiles of `columns` rows): one for each chunk of the matrix.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn product(
        &mut self,
        label: &str,
        matrix: &Matrix,
        x: Memory,
        rows: &Dim,
        columns: usize,
        epilogue: Epilogue,
        y: Memory,
    ) -> Result<(), BackendError> {
        let tiles = matrix.tiles();
        let shape = Shape::new(matrix.format, columns, tiles, matrix.blocks, matrix.paired, self.target_waves);
        let shader = format!("matmul.{}.{}x{}", matrix.format.name(), shape.rows, shape.columns);
        // Both sides of a pair that is not gated here lie side by side, tile by tile.
        let stored = if matrix.paired && epilogue.gated == 0 { tiles * 64 } else { matrix.rows };
        let column_tiles = rows.clone().div_ceil(columns.into());
        for Chunk { first_tile, tiles, parts } in &matrix.chunks {
            let per_result = if epilogue.gated == 0 { 1 } else { 2 };
            let offset = first_tile / per_result * 64;
            let here = (tiles / per_result * 64).min(stored - offset);
            let flags = u32::from(epilogue.bias.is_some())
                | u32::from(epilogue.residual.is_some()) << 1
                | u32::from(epilogue.function_first) << 2;
            let function = epilogue.function.unwrap_or(Function { code: 0, p: 0.0, q: 0.0 });
            let sums = if columns == 1 { (matrix.format.least_values() * matrix.blocks).max(1) } else { 1 };
            let rows_word = self.values.word(rows);
            let grid = [tiles.div_ceil(shape.rows).into(), column_tiles.clone(), 1.into()];
            let mut dispatch = Dispatch::new(label, shader.clone(), shape.threads)
                .constant(1, flags)
                .constant(2, epilogue.gated)
                .constant(3, sums as u32)
                .constant(5, epilogue.function.map_or(0, |function| function.code + 1))
                .read(5, x)
                .bind(6, y, Access::Write)
                .read(7, epilogue.bias.unwrap_or(Memory::Unused))
                .read(8, epilogue.residual.unwrap_or(Memory::Unused))
                .push([here, offset, stored].map(|n| n as u32))
                .push([rows_word, matrix.blocks as u32, *tiles as u32])
                .push([function.p.to_bits(), function.q.to_bits(), 0, 0, 0])
                .work((tiles * 64 * matrix.blocks * BLOCK) as f64 * self.bound(rows)? as f64);
            for (part, binding) in parts.iter().zip(1..) {
                if part.len > 0 {
                    dispatch = dispatch.read(binding, Memory::Weights(*part));
                }
            }
            let grid = self.values.grid(grid);
            self.emit(dispatch.grid(grid));
        }
        Ok(())
    }

    /// Brings `count` computed matrices of `shape` into the layout of f32 weights.
    pub(crate) fn computed_matrix(
        &mut self,
        label: &str,
        (from, dtype): (Memory, DType),
        shape: &[Dim],
        transpose_b: bool,
        count: Dim,
    ) -> Result<ComputedMatrix, BackendError> {
        let (n, k) = if transpose_b { (&shape[0], &shape[1]) } else { (&shape[1], &shape[0]) };
        let blocks = k.clone().div_ceil(BLOCK.into());
        let tiles = n.clone().div_ceil(64.into());
        let len = product(&[tiles, blocks.clone(), (64 * BLOCK).into()]);
        let bytes = self.bound(&len.clone().mul(count.clone()))?.saturating_mul(4);
        let memory = self.scratch(&format!("{label}, as a matrix"), bytes);
        let words = [&len, n, k].map(|dim| self.values.word(dim));
        let name = match dtype {
            DType::F32 => "0",
            DType::F16 => "1",
            _ => "2",
        };
        let most = self.gpu.limits().max_groups as usize;
        let groups = least(len.div_ceil(1024.into()), most);
        let grid = self.values.grid([groups, count.clone(), 1.into()]);
        let dispatch = Dispatch::new(label, format!("tile.{name}"), 256)
            .constant(1, u32::from(!transpose_b))
            .read(1, from)
            .write(2, memory)
            .push(words)
            .grid(grid);
        self.emit(dispatch);
        Ok(ComputedMatrix { memory, n: n.clone(), blocks, there: count, matrices: 1.into() })
    }

    /// Dispatches products with matrices that are computed: any number of rows and blocks. `x` has `rows` rows for each product, or once for all
    /// of them.
    pub(crate) fn computed_product(
        &mut self,
        label: &str,
        matrix: &ComputedMatrix,
        (x, rows, shared): (Memory, &Dim, bool),
        columns: usize,
        y: Memory,
    ) -> Result<(), BackendError> {
        let ComputedMatrix { memory, n, blocks, there, matrices } = matrix;
        let tiles = n.clone().div_ceil(64.into());
        let shape = Shape::new(Format::F32, columns, 2, 1, false, 1);
        let shader = format!("matmul.f32.{}x{}", shape.rows, shape.columns);
        let column_tiles = rows.clone().div_ceil(columns.into());
        let batched = *matrices != Dim::Num(1);
        let x_matrix = if shared { Dim::Num(0) } else { column_tiles.clone() };
        let w_matrix = if *there == Dim::Num(1) { Dim::Num(0) } else { tiles.clone() };
        let y_matrix = n.clone().mul(rows.clone());
        let words: Vec<u32> = [n, &0.into(), n, rows, blocks, &tiles].map(|dim| self.values.word(dim)).into();
        let between: Vec<u32> = [&x_matrix, &w_matrix, &y_matrix].map(|dim| self.values.word(dim)).into();
        let grid = [tiles.div_ceil(shape.rows.into()), column_tiles, matrices.clone()];
        let grid: Grid = self.values.grid(grid);
        let all = product(&[n.clone(), blocks.clone(), rows.clone(), matrices.clone()]);
        let work = self.bound(&all)? as f64 * BLOCK as f64;
        let dispatch = Dispatch::new(label, shader, shape.threads)
            .constant(1, 0)
            .constant(2, 0)
            .constant(3, 1)
            .constant(4, u32::from(batched))
            .read(1, *memory)
            .read(5, x)
            .write(6, y)
            .read(7, Memory::Unused)
            .read(8, Memory::Unused)
            .push(words)
            .push([0, 0])
            .push(between)
            .grid(grid)
            .work(work);
        self.emit(dispatch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_its_shaders() {
        let formats = [
            Format::F32,
            Format::F16,
            Format::BF16,
            Format::Q8_0,
            Format::Q4_0,
            Format::Q4_1,
            Format::Q5_0,
            Format::Q5_1,
            Format::Q4K,
            Format::Q5K,
            Format::Q6K,
            Format::Q2K,
            Format::Q3K,
            Format::Iq4Nl,
            Format::Iq4Xs,
            Format::Mxfp4,
            Format::Tq1_0,
            Format::Tq2_0,
        ];
        for format in formats {
            for rows in [0, 1, 2, 3, 4, 5, 8, 9, 32, 512] {
                for tiles in [1, 2, 3, 64, 768, 4_096] {
                    for (paired, waves) in [(false, 4), (true, 512)] {
                        let shape = Shape::new(format, columns(rows, tiles, waves), tiles, 18, paired, waves);
                        let name = format!("matmul.{}.{}x{}", format.name(), shape.rows, shape.columns);
                        assert!(crate::shader::words(&name).is_some(), "{name}");
                        assert!(rows > 8 || shape.columns >= rows);
                        assert!(shape.threads <= 512);
                        // Of a gated pair a lane has both sides, where they are joined.
                        assert!(!paired || shape.columns == 32 || shape.rows.is_multiple_of(2), "{name}");
                    }
                }
            }
        }
    }
}
