//! Models in several files: `name-00001-of-00003.gguf` and the keys `split.no`, `split.count`, `split.tensors.count`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use core_tensor::{FileAccess, FileBytes, FileError};

use crate::error::{GgufError, SplitFault};
use crate::shard::Shard;
use crate::value::FromValue;

const COUNT_KEY: &str = "split.count";
const NUMBER_KEY: &str = "split.no";
const TENSORS_KEY: &str = "split.tensors.count";

/// The parts of a shard's file name.
#[derive(Debug, PartialEq)]
struct ShardName<'a> {
    prefix: &'a str,
    /// From 1.
    number: u64,
    count: u64,
}

impl<'a> ShardName<'a> {
    fn parse(file_name: &'a str) -> Option<ShardName<'a>> {
        let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let plain = text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse::<u64>().ok()).flatten()
        };
        Some(ShardName { prefix, number: digits(number)?, count: digits(count)? })
    }

    fn with_number(&self, number: u64) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// An integer of a shard's metadata.
fn integer(shard: &Shard, key: &'static str) -> Result<Option<u64>, GgufError> {
    let Some((value, offset)) = shard.get(key) else { return Ok(None) };
    let path = || shard.path().to_owned();
    u64::from_value(value).map(Some).ok_or_else(|| GgufError::WrongType {
        path: path(),
        offset,
        key: key.to_owned(),
        expected: u64::EXPECTED,
        found: value.describe(),
    })
}

/// `split.count`, 0 where the file has no such key.
pub(crate) fn count(shard: &Shard) -> Result<u64, GgufError> {
    Ok(integer(shard, COUNT_KEY)?.unwrap_or(0))
}

/// Parses a file and, if it is one of several, the others.
pub(crate) fn open_all(file: Arc<FileBytes>, access: FileAccess) -> Result<Vec<Shard>, GgufError> {
    let path = file.path().to_owned();
    let given = Shard::parse(file, 0)?;
    let count = count(&given)?;
    if count <= 1 {
        return Ok(vec![given]);
    }
    let name_fault = || GgufError::split(&path, SplitFault::Name { count });
    let file_name = path.file_name().and_then(|name| name.to_str()).ok_or_else(name_fault)?;
    let name = ShardName::parse(file_name).ok_or_else(name_fault)?;
    check_keys(&given, &name, name.number)?;
    if name.number == 0 || name.number > name.count {
        return Err(name_fault());
    }

    let mut shards: Vec<Shard> = Vec::new();
    for number in 1..=name.count {
        let shard_path = path.with_file_name(name.with_number(number));
        let file = open_shard(&shard_path, access, number, name.count)?;
        let shard = Shard::parse(file, shards.len())?;
        check_keys(&shard, &name, number)?;
        shards.push(shard);
    }
    check_total(&shards)?;
    Ok(shards)
}

/// Opens one file, after a look at what it is: opening a pipe that nobody writes to would wait for ever.
pub(crate) fn open_file(path: &Path, access: FileAccess) -> Result<Arc<FileBytes>, FileError> {
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    FileBytes::open(path, access)
}

fn open_shard(path: &Path, access: FileAccess, number: u64, count: u64) -> Result<Arc<FileBytes>, GgufError> {
    open_file(path, access).map_err(|error| match &error {
        FileError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            GgufError::split(path, SplitFault::Missing { number, count })
        }
        _ => error.into(),
    })
}

/// Holds a shard's keys against its name.
fn check_keys(shard: &Shard, name: &ShardName<'_>, number: u64) -> Result<(), GgufError> {
    let fault = |fault| Err(GgufError::split(shard.path(), fault));
    match integer(shard, COUNT_KEY)? {
        None => return fault(SplitFault::NoKey { key: COUNT_KEY }),
        Some(found) if found != name.count => return fault(SplitFault::Count { expected: name.count, found }),
        Some(_) => {}
    }
    match integer(shard, NUMBER_KEY)? {
        None => fault(SplitFault::NoKey { key: NUMBER_KEY }),
        Some(found) if Some(found) != number.checked_sub(1) => {
            fault(SplitFault::Number { expected: number.saturating_sub(1), found })
        }
        Some(_) => Ok(()),
    }
}

/// Holds the number of tensors against what each shard promises.
fn check_total(shards: &[Shard]) -> Result<(), GgufError> {
    let found = shards.iter().map(|shard| shard.tensors.len() as u64).sum();
    for shard in shards {
        if let Some(expected) = integer(shard, TENSORS_KEY)?
            && expected != found
        {
            return Err(GgufError::split(shard.path(), SplitFault::TensorCount { expected, found }));
        }
    }
    Ok(())
}

/// The path of a shard: `prefix-00002-of-00003.gguf` for number 2 of 3.
#[must_use]
pub fn shard_path(prefix: &Path, number: u32, count: u32) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("-{number:05}-of-{count:05}.gguf"));
    path.into()
}
