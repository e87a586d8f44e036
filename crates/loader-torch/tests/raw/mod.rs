//! Files made by hand, right and wrong.

/// A file of this header and data, with the header's length before it.
pub(crate) fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|at| at as u8));
    bytes
}

/// A whole file with metadata, an escape in a name, a scalar, an empty tensor and tensors out of order.
#[allow(dead_code)] // not every test takes it
pub(crate) fn small_model() -> Vec<u8> {
    file(
        concat!(
            r#"{"__metadata__":{"format":"pt","no\tte":"x"},"#,
            r#""second":{"dtype":"F16","shape":[2,3],"data_offsets":[24,36]},"#,
            r#""first":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},"#,
            r#""\u00e9mpty":{"dtype":"I64","shape":[4,0],"data_offsets":[36,36]},"#,
            r#""scalar":{"dtype":"F8_E8M0","shape":[],"data_offsets":[36,37]}}   "#
        ),
        37,
    )
}
