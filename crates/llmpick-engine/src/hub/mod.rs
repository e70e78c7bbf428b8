//! Models as the hub has them: a folder of `config.json`, `tokenizer.json` and safetensors.
//!
//! Everything is brought into the words of a GGUF file (its keys, its names of tensors),
//! so that one decoder, one tokenizer and one template renderer serve both. Where the two
//! disagree about numbers, it is settled here: Gemma's norms are stored less 1, and scaled
//! RoPE is a formula in the one and a tensor in the other. One thing cannot be: the hub's
//! llamas turn the halves of a head and not its neighbours, which a key of ours says
//! ([`ROPE_HALVES`]).
//!
//! A folder has to hold exactly the tensors that its configuration asks for, in exactly
//! their shapes: a part left out, or one that nobody uses, is fluent nonsense.

mod config;
mod json;
mod shards;
mod tensors;
mod vocabulary;

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;

use crate::error::LoadErrorKind;
use crate::file::{Bytes, ModelFile};
use config::Config;
use json::Json;

/// True where heads are turned by halves, whatever the architecture's GGUF files do.
pub(crate) const ROPE_HALVES: &str = "llmpick.rope_halves";

/// True when `path` is a model of this kind, as far as its name says.
pub(crate) fn is_named(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") || path.is_dir()
}

/// Maps and checks the model that `path` names: a folder, the safetensors file in it, or
/// the index of several.
pub(crate) fn open(path: &Path) -> Result<ModelFile, LoadErrorKind> {
    let (folder, config, mut file) = begin(path)?;
    let shards = shards::open(&folder, path, &mut file)?;
    tensors::add(&mut file, &config, shards)?;
    Ok(file)
}

/// The settings of the model that `path` names, whatever its weights are.
pub(crate) fn settings(path: &Path) -> Result<ModelFile, LoadErrorKind> {
    begin(path).map(|(_, _, file)| file)
}

/// The folder, its configuration, and a file with all settings and no tensors.
fn begin(path: &Path) -> Result<(PathBuf, Config, ModelFile), LoadErrorKind> {
    if !path.exists() {
        return Err(LoadErrorKind::Missing);
    }
    let folder = match path.is_dir() {
        true => path,
        // A file in the working folder is written without one.
        false => path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    };
    // It may be written as `.`, and should have a name. Not so its files: in the hub's own
    // cache they are links to files that have none.
    let folder = std::fs::canonicalize(folder).map_err(LoadErrorKind::Io)?;
    let config = Json::read(&folder, "config.json")?.ok_or_else(|| missing("config.json"))?;
    let config = Config::read(&config)?;
    let mut file = ModelFile::new(config.metadata()?);
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    file.set("general.name", Value::String(name.into_owned()));
    for (key, value) in vocabulary::read(&folder, &config)? {
        file.set(&key, value);
    }
    Ok((folder, config, file))
}

/// A file of the folder that has to be there.
fn missing(name: &str) -> LoadErrorKind {
    LoadErrorKind::Incomplete {
        missing: name.to_owned(),
    }
}

/// An ordinary file of the folder as memory; `None` where there is none.
fn map(folder: &Path, name: &str) -> Result<Option<Bytes>, LoadErrorKind> {
    let path: PathBuf = folder.join(name);
    match Bytes::map(&path) {
        Err(LoadErrorKind::Missing) => Ok(None),
        Ok(None) => Err(LoadErrorKind::Malformed(format!("`{name}` is empty"))),
        result => result,
    }
}

/// More than any file of text has: the largest tokenizers take 40 MB.
const MOST_TEXT: usize = 1 << 28;

/// A file's bytes as text.
fn text<'a>(name: &str, bytes: &'a Bytes) -> Result<&'a str, LoadErrorKind> {
    let bytes = bytes.as_ref();
    if bytes.len() > MOST_TEXT {
        return Err(LoadErrorKind::Malformed(format!(
            "`{name}` has {} bytes, more than any tokenizer or configuration",
            bytes.len()
        )));
    }
    std::str::from_utf8(bytes).map_err(|_| LoadErrorKind::Malformed(format!("`{name}` is no text")))
}
