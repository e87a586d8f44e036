//! NumPy's `.npy` files (numpy.lib.format, versions 1.0 to 3.0).

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use core_tensor::{DType, PartialFile, Tensor};

use crate::failure::Failure;

const MAGIC: &[u8] = b"\x93NUMPY";
/// No header is longer: it holds a dtype and a shape.
const LONGEST_HEADER: usize = 1 << 16;

/// Reads a tensor.
pub(crate) fn read(path: &Path) -> Result<Tensor, Failure> {
    let wrong =
        |offset: usize, reason: &str| Failure::Runtime(format!("{}: at byte {offset}: {reason}", path.display()));
    let io = |error: std::io::Error| Failure::file(path, &error);
    let mut file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(Failure::Runtime(format!("{}: it is no file", path.display())));
    }
    let mut start = [0u8; 10];
    file.read_exact(&mut start).map_err(|_| wrong(0, "too short for an .npy file"))?;
    if !start.starts_with(MAGIC) {
        return Err(wrong(0, "no .npy file"));
    }
    let (mut length, mut at) = (usize::from(u16::from_le_bytes([start[8], start[9]])), 10);
    if start[6] > 1 {
        let mut more = [0u8; 2];
        file.read_exact(&mut more).map_err(|_| wrong(10, "too short for an .npy file"))?;
        length |= usize::from(u16::from_le_bytes(more)) << 16;
        at = 12;
    }
    if length > LONGEST_HEADER {
        return Err(wrong(8, &format!("a header of {length} bytes")));
    }
    let mut header = vec![0u8; length];
    file.read_exact(&mut header).map_err(|_| wrong(at, "the header is cut off"))?;
    let header = std::str::from_utf8(&header).map_err(|_| wrong(at, "the header is no text"))?;
    let field = |name: &str| header.split_once(&format!("'{name}':")).map(|(_, rest)| rest.trim_start());
    let descr = field("descr").and_then(|rest| rest.strip_prefix('\'')?.split_once('\'')).map(|(descr, _)| descr);
    let descr = descr.ok_or_else(|| wrong(at, "the header names no plain dtype"))?;
    let dtype = dtype_of(descr).ok_or_else(|| wrong(at, &format!("dtype {descr:?} is not supported")))?;
    if field("fortran_order").is_some_and(|rest| rest.starts_with("True")) {
        return Err(wrong(at, "the elements are in Fortran order; numpy.ascontiguousarray changes that"));
    }
    let shape = field("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).map(|(shape, _)| shape);
    let shape = shape.ok_or_else(|| wrong(at, "the header has no shape"))?;
    let extents = shape.split(',').map(str::trim).filter(|extent| !extent.is_empty());
    let shape: Vec<usize> =
        extents.map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong(at, &format!("shape ({shape})")))?;
    let data = at + length;
    let expected = core_tensor::byte_len(dtype, &shape).map_err(|error| wrong(at, &error.to_string()))?;
    let found = file.metadata().map_err(io)?.len().saturating_sub(data as u64);
    if found != expected as u64 {
        return Err(wrong(data, &format!("{found} bytes of elements, {dtype} {shape:?} takes {expected}")));
    }
    let mut bytes = Vec::with_capacity(expected);
    file.read_to_end(&mut bytes).map_err(io)?;
    Tensor::from_bytes(dtype, &shape, &bytes).map_err(|error| wrong(data, &error.to_string()))
}

/// Writes a tensor, to a temporary file first, which is renamed when it is whole. Dtypes that NumPy lacks become f32.
pub(crate) fn write(path: &Path, tensor: &Tensor) -> Result<(), Failure> {
    let convert = |error: core_tensor::TensorError| Failure::Runtime(format!("{}: {error}", path.display()));
    let converted;
    let (descr, tensor) = match descr_of(tensor.dtype()) {
        Some(descr) => (descr, tensor),
        None => {
            converted = Tensor::from_slice(tensor.shape(), &tensor.to_f32().map_err(convert)?).map_err(convert)?;
            ("<f4", &converted)
        }
    };
    let mut shape: String = tensor.shape().iter().map(|extent| format!("{extent}, ")).collect();
    if tensor.shape().len() > 1 {
        shape.truncate(shape.len() - 2);
    }
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(|_| Failure::Runtime("too many extents for .npy".into()))?;
    let result = PartialFile::create(path).and_then(|file| {
        let mut file = BufWriter::new(file);
        file.write_all(MAGIC)?;
        file.write_all(&[1, 0])?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        file.write_all(tensor.bytes())?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.finish()
    });
    result.map_err(|error| Failure::file(path, &error))
}

fn dtype_of(descr: &str) -> Option<DType> {
    Some(match descr.trim_start_matches(['<', '|', '=']) {
        "f8" => DType::F64,
        "f4" => DType::F32,
        "f2" => DType::F16,
        "i8" => DType::I64,
        "i4" => DType::I32,
        "i2" => DType::I16,
        "i1" => DType::I8,
        "u8" => DType::U64,
        "u4" => DType::U32,
        "u2" => DType::U16,
        "u1" => DType::U8,
        "b1" | "?" => DType::Bool,
        _ => return None,
    })
}

fn descr_of(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "<f8",
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::I16 => "<i2",
        DType::I8 => "|i1",
        DType::U64 => "<u8",
        DType::U32 => "<u4",
        DType::U16 => "<u2",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("polaris-npy-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_else_is_left() {
        let folder = folder("round");
        let path = folder.join("x.npy");
        for shape in [&[][..], &[3], &[2, 3], &[0, 4]] {
            let count: usize = shape.iter().product();
            let values: Vec<i64> = (0..count as i64).collect();
            let tensor = Tensor::from_slice(shape, &values).unwrap();
            write(&path, &tensor).unwrap();
            let read = read(&path).unwrap();
            assert_eq!((read.dtype(), read.shape(), read.bytes()), (DType::I64, shape, tensor.bytes()));
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn broken_files_are_errors_with_an_offset() {
        let folder = folder("broken");
        let path = folder.join("x.npy");
        write(&path, &Tensor::from_slice(&[4], &[1.0f32; 4]).unwrap()).unwrap();
        let good = fs::read(&path).unwrap();
        for cut in [0, 5, 9, 40, good.len() - 1] {
            fs::write(&path, &good[..cut]).unwrap();
            assert!(read(&path).unwrap_err().message().unwrap().contains("at byte"), "{cut}");
        }
        for (from, to) in [("<f4", "<c8"), ("(4,)", "(9,)"), ("(4,)", "(-4,"), ("False", "True ")] {
            let text = String::from_utf8_lossy(&good).into_owned();
            let at = text.find(from).unwrap() + good.len() - text.len();
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap_or(at);
            let mut bad = good.clone();
            bad[at..at + to.len()].copy_from_slice(to.as_bytes());
            fs::write(&path, &bad).unwrap();
            assert!(read(&path).is_err(), "{to}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
