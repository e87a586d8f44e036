//! The operators of `com.microsoft` that quantized and transformer exports use; family by family, as those of the standard domain.

pub(super) mod attention;
pub(super) mod elementwise;
pub(super) mod matmul;
pub(super) mod norm;
pub(super) mod quantize;
