//! Safetensors files: which there are, and where each tensor lies in them.
//!
//! The header is checked by the `safetensors` crate (its length, every offset, no overlap
//! and no hole); the walk here adds what a set of several files can get wrong.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;

use super::json;
use crate::error::LoadErrorKind;
use crate::file::ModelFile;

/// The index of several files that are one model.
const INDEX: &str = "model.safetensors.index.json";

/// Tensors by the file's names.
pub(super) type Found = BTreeMap<String, Stored>;

/// One tensor of a checked file.
pub(super) struct Stored {
    /// None for types that no kernel reads; `label` names it.
    pub dtype: Option<GgmlDType>,
    pub label: String,
    pub dims: Vec<usize>,
    pub part: usize,
    pub range: Range<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Maps the safetensors files that `path` stands for and adds them to `file`.
pub(super) fn open(
    folder: &Path,
    path: &Path,
    file: &mut ModelFile,
) -> Result<Found, LoadErrorKind> {
    let (names, index) = choose(folder, path)?;
    let mut found = Found::new();
    let mut holders: HashMap<String, String> = HashMap::new();
    for name in names {
        let bytes = super::map(folder, &name)?.ok_or_else(|| super::missing(&name))?;
        let (start, header) = header(&name, bytes.as_ref())?;
        let part = file.add_part(bytes);
        for (tensor, info) in header.tensors() {
            if let Some(other) = holders.insert(tensor.clone(), name.clone()) {
                return Err(LoadErrorKind::Malformed(format!(
                    "the tensor `{tensor}` is in `{other}` and in `{name}`"
                )));
            }
            let (first, last) = info.data_offsets;
            let stored = Stored {
                dtype: ggml(info.dtype),
                label: info.dtype.to_string(),
                dims: info.shape.clone(),
                part,
                range: start + first..start + last,
            };
            found.insert(tensor, stored);
        }
    }
    if let Some(index) = index {
        agree(&index, &holders)?;
    }
    Ok(found)
}

/// The names of the files, and the index that named them.
fn choose(folder: &Path, path: &Path) -> Result<(Vec<String>, Option<Index>), LoadErrorKind> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let index_name = match name.ends_with(".index.json") {
        true => name.as_ref(),
        false => INDEX,
    };
    let index = match super::map(folder, index_name)? {
        Some(bytes) => Some(json::parse::<Index>(
            index_name,
            super::text(index_name, &bytes)?,
        )?),
        None => None,
    };
    let is_shard = name.ends_with(".safetensors") && path.is_file();
    if let Some(index) = index {
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        if !is_shard || names.iter().any(|shard| **shard == name) {
            // A name with a folder in it could be any file of the machine.
            if let Some(outside) = names.iter().find(|n| n.contains(['/', '\\'])) {
                return Err(LoadErrorKind::Malformed(format!(
                    "`{index_name}` names the file `{outside}`, which is not in this folder"
                )));
            }
            return Ok((names.into_iter().cloned().collect(), Some(index)));
        }
    }
    if is_shard {
        return Ok((vec![name.into_owned()], None));
    }
    if folder.join("model.safetensors").exists() {
        return Ok((vec!["model.safetensors".to_owned()], None));
    }
    Ok((vec![only(folder)?], None))
}

/// The one safetensors file of a folder that has none of the usual names.
fn only(folder: &Path) -> Result<String, LoadErrorKind> {
    let entries = std::fs::read_dir(folder).map_err(LoadErrorKind::Io)?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        (Some(_), false) => Err(super::missing(INDEX)),
        (None, _) => Err(super::missing("model.safetensors")),
    }
}

/// Every tensor of the index is where it says, and no file has others.
fn agree(index: &Index, holders: &HashMap<String, String>) -> Result<(), LoadErrorKind> {
    let mut names: BTreeSet<&String> = index.weight_map.keys().collect();
    names.extend(holders.keys());
    for tensor in names {
        let (said, held) = (index.weight_map.get(tensor), holders.get(tensor));
        if said != held {
            let place = |name: Option<&String>| match name {
                Some(name) => format!("in `{name}`"),
                None => "nowhere".to_owned(),
            };
            return Err(LoadErrorKind::Malformed(format!(
                "the tensor `{tensor}` is {} by the index, and is {}",
                place(said),
                place(held)
            )));
        }
    }
    Ok(())
}

/// Where the data of a file begins, and its checked header.
fn header(
    name: &str,
    bytes: &[u8],
) -> Result<(usize, safetensors::tensor::Metadata), LoadErrorKind> {
    let actual = bytes.len() as u64;
    let truncated = |what: &str, needed: u64| LoadErrorKind::Truncated {
        what: format!("{what} of `{name}`"),
        needed,
        actual,
    };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(truncated("the header", 8));
    };
    let length = u64::from_le_bytes(*length);
    match SafeTensors::read_metadata(bytes) {
        Ok((header, metadata)) => Ok((8 + header, metadata)),
        Err(SafeTensorError::InvalidHeaderLength) => {
            Err(truncated("the header", length.saturating_add(8)))
        }
        Err(SafeTensorError::HeaderTooLarge) => {
            // What another kind of file begins with, read as a length.
            let start = &bytes[..bytes.len().min(8)];
            Err(LoadErrorKind::Malformed(format!(
                "`{name}` is no safetensors file: its header would have {length} bytes \
                 (it begins with {:?})",
                String::from_utf8_lossy(start)
            )))
        }
        Err(SafeTensorError::MetadataIncompleteBuffer) => {
            let needed = end_of_data(rest, length).map(|end| end + 8 + length);
            match needed {
                Some(needed) if needed > actual => Err(truncated("the last tensor", needed)),
                _ => Err(LoadErrorKind::Malformed(format!(
                    "`{name}` has bytes that belong to no tensor"
                ))),
            }
        }
        Err(
            SafeTensorError::InvalidHeader(_) | SafeTensorError::InvalidHeaderDeserialization(_),
        ) => Err(LoadErrorKind::Malformed(format!(
            "the header of `{name}` cannot be read; is it a safetensors file?"
        ))),
        Err(error) => Err(LoadErrorKind::Malformed(format!("in `{name}`: {error}"))),
    }
}

/// The end of the last tensor by a header that was read already.
fn end_of_data(rest: &[u8], length: u64) -> Option<u64> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        data_offsets: (u64, u64),
    }
    let header = rest.get(..usize::try_from(length).ok()?)?;
    let entries: HashMap<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let ends = entries.into_values().filter_map(|entry| {
        let entry: Entry = serde_json::from_value(entry).ok()?;
        Some(entry.data_offsets.1)
    });
    ends.max().filter(|end| *end < 1 << 60)
}

/// The types that kernels read as they are.
fn ggml(dtype: Dtype) -> Option<GgmlDType> {
    match dtype {
        Dtype::F32 => Some(GgmlDType::F32),
        Dtype::F16 => Some(GgmlDType::F16),
        Dtype::BF16 => Some(GgmlDType::BF16),
        _ => None,
    }
}
