//! Importances in files: llama.cpp's GGUF form, and the `.dat` form that came before it.

use std::path::Path;

use core_tensor::FileAccess;
use loader_gguf::{ArrayBuf, GgmlType, Gguf, GgufError, GgufWriter, ValueType};
use polaris_quant::{Importance, Importances};

use crate::Error;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// Bytes of a file of the old form at most: four for each column of each matrix are some MiB.
const LONGEST: u64 = 1 << 30;

/// Reads importances from a file of either form.
///
/// # Errors
/// When the file cannot be read or is neither.
pub fn read_importances(path: &Path) -> Result<Importances, Error> {
    let unusable = |reason: String| Error::Unusable { path: path.to_owned(), reason };
    let magic = std::fs::File::open(path).and_then(|mut file| {
        let mut magic = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, 4), &mut magic).map(|_| magic)
    });
    match magic.map_err(|error| unusable(error.to_string()))?.as_slice() {
        b"GGUF" => read_gguf(&Gguf::open(path, FileAccess::Read)?),
        _ => {
            let mut bytes = Vec::new();
            let read = std::fs::File::open(path)
                .and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, LONGEST + 1), &mut bytes));
            read.map_err(|error| unusable(error.to_string()))?;
            if bytes.len() as u64 > LONGEST {
                return Err(unusable(format!("importances of this form have no more than {} MiB", LONGEST >> 20)));
            }
            read_dat(&bytes).ok_or_else(|| unusable("this is no file of importances (imatrix)".into()))
        }
    }
}

fn read_gguf(file: &Gguf) -> Result<Importances, Error> {
    let wrong =
        |name: &str, reason: String| Error::Tensor { path: file.path().to_owned(), name: name.to_owned(), reason };
    let mut importances = Importances {
        chunks: file.optional(CHUNK_COUNT)?.unwrap_or(0),
        chunk_size: file.optional(CHUNK_SIZE)?.unwrap_or(0),
        ..Importances::default()
    };
    if file.contains(DATASETS) {
        importances.datasets = file.strings(DATASETS)?.map(|text| text.map(str::to_owned)).collect::<Result<_, _>>()?;
    }
    for info in file.tensors() {
        let Some(name) = info.name().strip_suffix(SUMS) else { continue };
        let floats = |name: &str| -> Result<Vec<f32>, Error> {
            let tensor = file.tensor(name)?;
            let floats = tensor.to_vec::<f32>().map_err(|error| wrong(name, error.to_string()))?;
            match floats.iter().all(|value| value.is_finite() && *value >= 0.0) {
                true => Ok(floats),
                false => Err(wrong(name, "it has a negative or infinite number".into())),
            }
        };
        let (sums, counts) = (floats(info.name())?, floats(&format!("{name}{COUNTS}"))?);
        if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            return Err(wrong(info.name(), format!("{} sums and {} counts", sums.len(), counts.len())));
        }
        importances.entries.insert(name.to_owned(), Importance { sums, counts });
    }
    if importances.entries.is_empty() {
        let reason = "it has no importances (tensors whose names end in .in_sum2)".to_owned();
        return Err(Error::Unusable { path: file.path().to_owned(), reason });
    }
    Ok(importances)
}

/// The old form: entries of a name, a count and means times that count; then chunks and the text's name, if they are there.
fn read_dat(bytes: &[u8]) -> Option<Importances> {
    let mut cursor = bytes;
    let entries = number(&mut cursor)?;
    let mut importances = Importances::default();
    for _ in 0..entries {
        let name = text(&mut cursor)?;
        let count = number(&mut cursor)?;
        let values = number(&mut cursor)?;
        let floats = take(&mut cursor, values.checked_mul(4)?)?;
        let sums: Vec<f32> = floats.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if sums.is_empty() || !sums.iter().all(|sum| sum.is_finite() && *sum >= 0.0) {
            return None;
        }
        importances.entries.insert(name, Importance { sums, counts: vec![count.max(1) as f32] });
    }
    if let Some(chunks) = number(&mut cursor) {
        importances.chunks = chunks as u32;
        importances.datasets.extend(text(&mut cursor));
    }
    (!importances.entries.is_empty()).then_some(importances)
}

/// A number that is not negative, of 32 bits.
fn number(cursor: &mut &[u8]) -> Option<usize> {
    let bytes = take(cursor, 4)?.try_into().ok()?;
    i32::from_le_bytes(bytes).try_into().ok()
}

fn text(cursor: &mut &[u8]) -> Option<String> {
    let length = number(cursor)?;
    String::from_utf8(take(cursor, length)?.to_vec()).ok()
}

fn take<'a>(cursor: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = cursor.split_at_checked(count)?;
    *cursor = rest;
    Some(taken)
}

/// Writes importances in the GGUF form, which llama.cpp reads.
///
/// # Errors
/// When the file cannot be written.
pub fn write_importances(importances: &Importances, path: &Path) -> Result<(), Error> {
    let mut datasets = ArrayBuf::new(ValueType::String);
    for dataset in &importances.datasets {
        let fits = datasets.push(dataset.as_str());
        fits.map_err(|fault| Error::Unusable { path: path.to_owned(), reason: fault.to_string() })?;
    }
    let mut writer = GgufWriter::new();
    writer.set("general.type", "imatrix")?;
    writer.set(DATASETS, &datasets)?;
    writer.set(CHUNK_COUNT, importances.chunks)?.set(CHUNK_SIZE, importances.chunk_size)?;
    for (name, importance) in &importances.entries {
        let matrices = importance.counts.len();
        let columns = importance.sums.len() / matrices.max(1);
        floats(&mut writer, &format!("{name}{SUMS}"), &[matrices, columns], &importance.sums)?;
        floats(&mut writer, &format!("{name}{COUNTS}"), &[matrices, 1], &importance.counts)?;
    }
    Ok(writer.write(path)?)
}

fn floats<'a>(writer: &mut GgufWriter<'a>, name: &str, shape: &[usize], values: &'a [f32]) -> Result<(), GgufError> {
    let write = |out: &mut dyn std::io::Write| values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()));
    writer.stream(name, GgmlType::F32, shape, write).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dat(entries: &[(&str, i32, &[f32])], tail: Option<(i32, &str)>) -> Vec<u8> {
        let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
        let text = |text: &str, bytes: &mut Vec<u8>| {
            bytes.extend((text.len() as i32).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        for (name, count, values) in entries {
            text(name, &mut bytes);
            bytes.extend(count.to_le_bytes());
            bytes.extend((values.len() as i32).to_le_bytes());
            values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
        if let Some((chunks, dataset)) = tail {
            bytes.extend(chunks.to_le_bytes());
            text(dataset, &mut bytes);
        }
        bytes
    }

    #[test]
    fn the_old_form_is_read_with_and_without_its_tail() {
        let entry: (&str, i32, &[f32]) = ("blk.0.attn_q.weight", 2, &[2.0, 6.0]);
        let read = read_dat(&dat(&[entry], Some((7, "wiki")))).expect("it is well-formed");
        assert_eq!(read.entries["blk.0.attn_q.weight"].means(), [1.0, 3.0]);
        assert_eq!((read.chunks, read.datasets), (7, vec!["wiki".to_owned()]));
        assert_eq!(read_dat(&dat(&[entry], None)).map(|read| read.chunks), Some(0));
    }

    #[test]
    fn what_is_cut_or_makes_no_sense_is_refused() {
        let whole = dat(&[("a", 1, &[1.0; 8])], None);
        for length in 0..whole.len() {
            assert_eq!(read_dat(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(read_dat(&dat(&[("a", 1, &[f32::NAN])], None)), None);
        assert_eq!(read_dat(&dat(&[("a", 1, &[-1.0])], None)), None);
        assert_eq!(read_dat(&dat(&[], None)), None);
        assert_eq!(read_dat(&(-5i32).to_le_bytes()), None);
    }
}
