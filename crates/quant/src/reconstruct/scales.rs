//! The scales of a block that are floats of their own, and the values of its codes.

use core_tensor::block::{
    BlockIq4Nl, BlockIq4Xs, BlockMxfp4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1,
    BlockQ5K, BlockQ6K, BlockTq1_0, BlockTq2_0, E2M1_DOUBLED, F16Le, IQ4_VALUES,
};

/// Blocks whose weights are `a · value(code) + b`, with an `a` that all factors of the first scale are factors of, and a `b` likewise of the second.
pub(super) trait Scales: Copy {
    /// The scale, and the scale of minima (or the minimum); 0 where there is none.
    fn scales(&self) -> [f32; 2];

    /// Sets them, as near as the file can.
    fn set_scales(&mut self, scales: [f32; 2]);

    /// The values of the codes, in the order of the codes.
    fn values() -> Vec<f32>;
}

/// Whole numbers, of which the code `zero` stands for 0.
fn whole(count: u8, zero: u8) -> Vec<f32> {
    (0..count).map(|code| f32::from(code) - f32::from(zero)).collect()
}

macro_rules! scales {
    ($($block:ty: $d:ident $(, $m:ident)?; $values:expr;)*) => {$(
        impl Scales for $block {
            fn scales(&self) -> [f32; 2] {
                #[allow(unused_mut)]
                let mut scales = [self.$d.to_f32(), 0.0];
                $(scales[1] = self.$m.to_f32();)?
                scales
            }

            fn set_scales(&mut self, scales: [f32; 2]) {
                self.$d = F16Le::from_f32(scales[0]);
                $(self.$m = F16Le::from_f32(scales[1]);)?
            }

            fn values() -> Vec<f32> {
                $values
            }
        }
    )*};
}

scales! {
    BlockQ4_0: d; whole(16, 8);
    BlockQ4_1: d, m; whole(16, 0);
    BlockQ5_0: d; whole(32, 16);
    BlockQ5_1: d, m; whole(32, 0);
    BlockIq4Nl: d; IQ4_VALUES.map(f32::from).to_vec();
    BlockQ2K: d, dmin; whole(4, 0);
    BlockQ3K: d; whole(8, 4);
    BlockQ4K: d, dmin; whole(16, 0);
    BlockQ5K: d, dmin; whole(32, 0);
    BlockQ6K: d; whole(64, 32);
    BlockIq4Xs: d; IQ4_VALUES.map(f32::from).to_vec();
    BlockTq1_0: d; whole(3, 1);
    BlockTq2_0: d; whole(3, 1);
}

/// Its scale is a power of two: it stays.
impl Scales for BlockMxfp4 {
    fn scales(&self) -> [f32; 2] {
        [0.0; 2]
    }

    fn set_scales(&mut self, _: [f32; 2]) {}

    fn values() -> Vec<f32> {
        E2M1_DOUBLED.map(f32::from).to_vec()
    }
}
