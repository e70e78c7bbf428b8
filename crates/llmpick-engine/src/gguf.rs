//! Open a GGUF file: check every count and offset first, then let candle read the header.
//!
//! candle's reader is written for good files: it divides by the file's own alignment and
//! multiplies dimensions unchecked. The walk here touches each entry once without keeping
//! any, and after it nothing in the header can point outside the file. It also gives what
//! candle's error texts cannot: which tensor has which unknown type, and how many bytes
//! are missing at the end.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;

use crate::error::LoadErrorKind;
use crate::file::{Bytes, ModelFile, TensorView};

/// Maps and checks the GGUF file at `path`.
pub(crate) fn open(path: &Path) -> Result<ModelFile, LoadErrorKind> {
    match Bytes::map(path)? {
        Some(bytes) => over(bytes),
        None => Err(LoadErrorKind::NotGguf {
            start: "nothing: it is empty".to_owned(),
        }),
    }
}

/// Checks a file that is in memory already.
pub(crate) fn from_bytes(bytes: Vec<u8>) -> Result<ModelFile, LoadErrorKind> {
    over(Bytes::Memory(bytes))
}

fn over(bytes: Bytes) -> Result<ModelFile, LoadErrorKind> {
    check(bytes.as_ref())?;
    let content = Content::read(&mut Cursor::new(bytes.as_ref()))
        .map_err(|error| LoadErrorKind::Malformed(format!("its header is wrong ({error})")))?;
    let mut file = ModelFile::new(content.metadata);
    let part = file.add_part(bytes);
    for (name, info) in content.tensor_infos {
        let dtype = info.ggml_dtype;
        let bytes = info.shape.elem_count() / dtype.block_size() * dtype.type_size();
        let start = (content.tensor_data_offset + info.offset) as usize;
        let view = TensorView {
            dtype,
            dims: info.shape.dims().to_vec(),
            part,
            range: start..start + bytes,
        };
        file.add_tensor(name, view);
    }
    Ok(file)
}

/// The name of a GGML tensor type, and, where the engine reads it, its block: values and bytes.
fn ggml_type(id: u32) -> (&'static str, Option<(u64, u64)>) {
    match id {
        0 => ("F32", Some((1, 4))),
        1 => ("F16", Some((1, 2))),
        2 => ("Q4_0", Some((32, 18))),
        3 => ("Q4_1", Some((32, 20))),
        6 => ("Q5_0", Some((32, 22))),
        7 => ("Q5_1", Some((32, 24))),
        8 => ("Q8_0", Some((32, 34))),
        10 => ("Q2_K", None),
        11 => ("Q3_K", None),
        12 => ("Q4_K", Some((256, 144))),
        13 => ("Q5_K", Some((256, 176))),
        14 => ("Q6_K", Some((256, 210))),
        16 => ("IQ2_XXS", None),
        17 => ("IQ2_XS", None),
        18 => ("IQ3_XXS", None),
        19 => ("IQ1_S", None),
        20 => ("IQ4_NL", None),
        21 => ("IQ3_S", None),
        22 => ("IQ2_S", None),
        23 => ("IQ4_XS", None),
        29 => ("IQ1_M", None),
        30 => ("BF16", Some((1, 2))),
        34 => ("TQ1_0", None),
        35 => ("TQ2_0", None),
        39 => ("MXFP4", None),
        _ => ("", None),
    }
}

/// Walks the whole header; an `Ok` means that every count, length and offset is inside the file.
fn check(bytes: &[u8]) -> Result<(), LoadErrorKind> {
    if bytes.get(..4) != Some(b"GGUF") {
        let start = bytes.get(..bytes.len().min(8)).unwrap_or_default();
        return Err(LoadErrorKind::NotGguf {
            start: format!("{:?}", String::from_utf8_lossy(start)),
        });
    }
    let mut walk = Walk { bytes, at: 4 };
    let version = walk.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(LoadErrorKind::Version { version });
    }
    let tensors = walk.u64("the number of tensors")?;
    let pairs = walk.u64("the number of settings")?;
    let mut alignment = 32u64;
    let mut keys = HashSet::new();
    for _ in 0..pairs {
        let key = walk.string("a setting's name")?;
        if !keys.insert(key) {
            return Err(LoadErrorKind::Malformed(format!(
                "two settings are called `{}`",
                String::from_utf8_lossy(key)
            )));
        }
        let kind = walk.u32("a setting's type")?;
        if key == b"general.alignment" {
            // Only the type that the format prescribes; candle would take others.
            if kind != 4 {
                return Err(LoadErrorKind::Malformed(
                    "its alignment is not a 32-bit number".to_owned(),
                ));
            }
            alignment = u64::from(walk.u32("the alignment")?);
        } else {
            walk.value(kind, 0)?;
        }
    }
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(LoadErrorKind::Malformed(format!(
            "its alignment is {alignment}"
        )));
    }
    let mut ends = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let (name, offset, size) = walk.tensor()?;
        if !names.insert(name.clone()) {
            return Err(LoadErrorKind::Malformed(format!(
                "two tensors are called `{name}`"
            )));
        }
        if offset % alignment != 0 {
            return Err(LoadErrorKind::Malformed(format!(
                "the tensor `{name}` begins at the unaligned offset {offset}"
            )));
        }
        ends.push((name, offset, size));
    }
    let data = (walk.at as u64).next_multiple_of(alignment);
    let actual = bytes.len() as u64;
    // A small file whose tensors are all the same bytes would be a large model.
    ends.sort_by_key(|(_, offset, _)| *offset);
    for pair in ends.windows(2) {
        let [(first, offset, size), (second, next, _)] = pair else {
            continue;
        };
        if offset.saturating_add(*size) > *next {
            return Err(LoadErrorKind::Malformed(format!(
                "the tensors `{first}` and `{second}` share bytes"
            )));
        }
    }
    for (name, offset, size) in ends {
        let needed = data
            .checked_add(offset)
            .and_then(|start| start.checked_add(size))
            .ok_or_else(|| {
                LoadErrorKind::Malformed(format!("the tensor `{name}` has an impossible offset"))
            })?;
        if needed > actual {
            return Err(LoadErrorKind::Truncated {
                what: format!("the tensor `{name}`"),
                needed,
                actual,
            });
        }
    }
    Ok(())
}

/// A reader that cannot leave the file.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], LoadErrorKind> {
        let end = (self.at as u64).saturating_add(count);
        let actual = self.bytes.len() as u64;
        if end > actual {
            return Err(LoadErrorKind::Truncated {
                what: what.to_owned(),
                needed: end,
                actual,
            });
        }
        let slice = &self.bytes[self.at..end as usize];
        self.at = end as usize;
        Ok(slice)
    }

    fn u32(&mut self, what: &str) -> Result<u32, LoadErrorKind> {
        let mut raw = [0; 4];
        raw.copy_from_slice(self.take(4, what)?);
        Ok(u32::from_le_bytes(raw))
    }

    fn u64(&mut self, what: &str) -> Result<u64, LoadErrorKind> {
        let mut raw = [0; 8];
        raw.copy_from_slice(self.take(8, what)?);
        Ok(u64::from_le_bytes(raw))
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8], LoadErrorKind> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    /// Skips one value of type `kind`.
    fn value(&mut self, kind: u32, depth: u32) -> Result<(), LoadErrorKind> {
        let what = "a setting";
        match (scalar_bytes(kind), kind) {
            (Some(size), _) => self.take(size, what).map(drop),
            (None, 8) => self.string(what).map(drop),
            (None, 9) => self.array(depth),
            (None, _) => Err(LoadErrorKind::Malformed(format!(
                "a setting has the unknown type {kind}"
            ))),
        }
    }

    fn array(&mut self, depth: u32) -> Result<(), LoadErrorKind> {
        // Arrays of arrays exist in the format and in no model; a chain of them must not
        // become a chain of our stack frames.
        if depth > 4 {
            return Err(LoadErrorKind::Malformed(
                "its settings are nested too deep".to_owned(),
            ));
        }
        let kind = self.u32("an array's type")?;
        let count = self.u64("an array's length")?;
        if let Some(size) = scalar_bytes(kind) {
            return self.take(count.saturating_mul(size), "an array").map(drop);
        }
        for _ in 0..count {
            self.value(kind, depth + 1)?;
        }
        Ok(())
    }

    /// One tensor entry: name, offset in the data part, bytes.
    fn tensor(&mut self) -> Result<(String, u64, u64), LoadErrorKind> {
        let name = String::from_utf8_lossy(self.string("a tensor's name")?).into_owned();
        let rank = self.u32("a tensor's rank")?;
        if !(1..=4).contains(&rank) {
            return Err(LoadErrorKind::Malformed(format!(
                "the tensor `{name}` has {rank} dimensions"
            )));
        }
        let mut row = 0;
        let mut elements = 1u64;
        for axis in 0..rank {
            let length = self.u64("a tensor's shape")?;
            if axis == 0 {
                row = length;
            }
            elements = elements
                .checked_mul(length)
                .filter(|n| (1..1 << 48).contains(n))
                .ok_or_else(|| {
                    LoadErrorKind::Malformed(format!("the tensor `{name}` has an impossible shape"))
                })?;
        }
        let id = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        let (block, bytes) = match ggml_type(id) {
            (_, Some(block)) => block,
            (label, None) => {
                return Err(LoadErrorKind::Quantisation {
                    tensor: name,
                    quantisation: match label {
                        "" => format!("type number {id}"),
                        label => label.to_owned(),
                    },
                });
            }
        };
        if row % block != 0 {
            return Err(LoadErrorKind::Malformed(format!(
                "a row of the tensor `{name}` has {row} values, not a multiple of {block}"
            )));
        }
        Ok((name, offset, elements / block * bytes))
    }
}

/// Bytes of a scalar value type, `None` for strings, arrays and unknown types.
fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
