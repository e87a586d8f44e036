//! Results whose elements are computed one by one, and where those of their operands lie: what `shaders/walk.glsl` walks over.

use core_tensor::Dim;

use crate::step::product;

/// Extents that kernels walk over.
pub(crate) const MOST_EXTENTS: usize = 6;

/// Extents of a result, outermost first, and for each operand how far elements are apart along them; 0 where the operand repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    pub(crate) dims: Vec<Dim>,
    pub(crate) strides: Vec<Vec<Dim>>,
}

/// How far elements of a tensor are apart along each of its extents.
pub(crate) fn contiguous(shape: &[Dim]) -> Vec<Dim> {
    (0..shape.len()).map(|i| product(&shape[i + 1..])).collect()
}

impl Walk {
    /// Operands that are broadcast to a shape as in NumPy, in as few extents as tell the same.
    pub(crate) fn broadcast(result: &[Dim], operands: &[&[Dim]]) -> Walk {
        let strides = operands.iter().map(|shape| {
            let own = contiguous(shape);
            let missing = result.len().saturating_sub(shape.len());
            let apart = |(i, dim): (usize, &Dim)| match i.checked_sub(missing) {
                None => Dim::Num(0),
                Some(j) if shape[j] == *dim => own[j].clone(),
                Some(j) => Walk::apart(&shape[j], own[j].clone()),
            };
            result.iter().enumerate().map(apart).collect()
        });
        Walk { dims: result.to_vec(), strides: strides.collect() }.merged()
    }

    /// How far elements along an extent that is broadcast are apart, if they lie `stride` apart: not at all where it is 1, as a symbol may turn out
    /// to be.
    pub(crate) fn apart(dim: &Dim, stride: Dim) -> Dim {
        match dim.as_num() {
            Some(1) => Dim::Num(0),
            Some(_) => stride,
            None => stride.mul(dim.clone().max(1.into()).sub(1.into()).min(1.into())),
        }
    }

    /// The same without extents of 1, and with those as one along which all operands go on as they did.
    pub(crate) fn merged(self) -> Walk {
        let mut walk = Walk { dims: Vec::new(), strides: vec![Vec::new(); self.strides.len()] };
        for (i, dim) in self.dims.iter().enumerate().rev() {
            if *dim == Dim::Num(1) {
                continue;
            }
            // The walk is built from the innermost extent on.
            let goes_on = walk.dims.last().is_some_and(|inner| {
                walk.strides.iter().zip(&self.strides).all(|(merged, strides)| {
                    merged.last().is_some_and(|stride| strides[i] == stride.clone().mul(inner.clone()))
                })
            });
            if let (true, Some(inner)) = (goes_on, walk.dims.last_mut()) {
                *inner = dim.clone().mul(inner.clone());
                continue;
            }
            walk.dims.push(dim.clone());
            walk.strides.iter_mut().zip(&self.strides).for_each(|(merged, strides)| merged.push(strides[i].clone()));
        }
        if walk.dims.is_empty() {
            walk.dims.push(1.into());
            walk.strides.iter_mut().for_each(|strides| strides.push(0.into()));
        }
        walk.dims.reverse();
        walk.strides.iter_mut().for_each(|strides| strides.reverse());
        walk
    }

    /// The same over elements of `words` words each; the marked operands have one element for all of them.
    pub(crate) fn in_words(mut self, words: usize, shared: &[bool]) -> Walk {
        if words == 1 {
            return self;
        }
        self.dims.push(words.into());
        for (strides, shared) in self.strides.iter_mut().zip(shared) {
            let scale = if *shared { 1 } else { words };
            strides.iter_mut().for_each(|stride| *stride = stride.clone().mul(scale.into()));
            strides.push(usize::from(!shared).into());
        }
        self.merged()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nums(shape: &[usize]) -> Vec<Dim> {
        shape.iter().map(|n| Dim::Num(*n)).collect()
    }

    #[test]
    fn extents_along_which_all_operands_go_on_become_one() {
        let (a, b) = (nums(&[2, 3, 4, 5]), nums(&[4, 5]));
        let walk = Walk::broadcast(&a, &[&a, &b]);
        assert_eq!(walk.dims, nums(&[6, 20]));
        assert_eq!(walk.strides, [nums(&[20, 1]), nums(&[0, 1])]);
        assert_eq!(Walk::broadcast(&a, &[&a, &a]).dims, nums(&[120]));
        let scalar = Walk::broadcast(&a, &[&a, &[]]);
        assert_eq!((scalar.dims, scalar.strides[1].clone()), (nums(&[120]), nums(&[0])));
        let empty = Walk::broadcast(&[], &[&[], &[]]);
        assert_eq!((empty.dims, empty.strides), (nums(&[1]), vec![nums(&[0]); 2]));
    }

    #[test]
    fn a_symbol_that_turns_out_to_be_one_repeats() {
        let (rows, other) = (Dim::sym("rows"), Dim::sym("other"));
        let walk = Walk::broadcast(&[rows.clone(), 4.into()], &[&[rows.clone(), 4.into()], &[other, 4.into()]]);
        let at = |n| core_tensor::Bindings::new().with("rows", 5).with("other", n);
        let stride = |n| walk.strides[1][0].eval(&at(n));
        assert_eq!((stride(1), stride(5), stride(0)), (Ok(0), Ok(4), Ok(0)));
    }

    #[test]
    fn elements_of_several_words_share_what_chooses_them() {
        let (a, c) = (nums(&[3, 4]), nums(&[3, 1]));
        let walk = Walk::broadcast(&a, &[&c, &a]).in_words(2, &[true, false]);
        assert_eq!(walk.dims, nums(&[3, 8]));
        assert_eq!(walk.strides, [nums(&[1, 0]), nums(&[8, 1])]);
    }
}
