//! The index of a sharded model.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use core_tensor::{FileAccess, FileBytes};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Fault, Malformed, TorchError};
use crate::header::{Entries, Json};
use crate::{MAX_HEADER, MAX_SHARDS};

/// Which tensor is in which file.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) path: PathBuf,
    /// Names of the files, in the order in which they first come up.
    pub(crate) files: Vec<String>,
    /// Tensor, number of its file, place of its entry in the index.
    pub(crate) tensors: Vec<(String, usize, usize)>,
}

/// What of an index is looked at. Unknown fields are allowed: `metadata` holds whatever its writer likes.
#[derive(Deserialize)]
struct Root<'a> {
    #[serde(borrow)]
    weight_map: &'a RawValue,
}

impl Index {
    /// Reads and checks an index.
    pub(crate) fn open(path: &Path, access: FileAccess) -> Result<Index, TorchError> {
        let file = FileBytes::open(path, access)?;
        Ok(Index::parse(path, &file)?)
    }

    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Index, Box<Malformed>> {
        let fault = |offset: usize, fault| {
            Box::new(Malformed { path: path.to_owned(), offset: offset as u64, tensor: None, fault })
        };
        if bytes.len() as u64 > MAX_HEADER {
            return Err(fault(0, Fault::HeaderTooLarge { length: bytes.len() as u64 }));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| fault(error.valid_up_to(), Fault::Json { reason: "the index is not UTF-8".into() }))?;
        let json = Json { path, text, start: 0 };
        let root: Root<'_> = json.parse(text, None)?;
        let Entries(entries) = json.parse(root.weight_map.get(), None)?;
        let mut index = Index { path: path.to_owned(), files: Vec::new(), tensors: Vec::with_capacity(entries.len()) };
        let mut numbers = std::collections::HashMap::new();
        for (tensor, value) in entries {
            let place = json.place(value.get());
            let file: Cow<'_, str> = json.parse(value.get(), Some(&tensor))?;
            let number = match numbers.get(&file) {
                Some(number) => *number,
                None => {
                    if !is_name(&file) {
                        let found = file.chars().take(256).collect();
                        return Err(json.fault(place, Some(&tensor), Fault::ShardName { found }));
                    }
                    if index.files.len() == MAX_SHARDS {
                        return Err(json.fault(place, None, Fault::TooManyShards));
                    }
                    index.files.push(file.to_string());
                    numbers.insert(file, index.files.len() - 1);
                    index.files.len() - 1
                }
            };
            index.tensors.push((tensor.into_owned(), number, place));
        }
        Ok(index)
    }

    /// A tensor that is not in the file that the index says.
    pub(crate) fn not_in_shard(&self, tensor: &str, number: usize, place: usize) -> Box<Malformed> {
        let file = self.files.get(number).cloned().unwrap_or_default();
        Box::new(Malformed {
            path: self.path.clone(),
            offset: place as u64,
            tensor: Some(tensor.to_owned()),
            fault: Fault::NotInShard { file },
        })
    }
}

/// Whether this is the name of a file in the same folder, on every system.
fn is_name(file: &str) -> bool {
    !matches!(file, "" | "." | "..") && !file.contains(['/', '\\', ':', '\0'])
}
