//! A checked model file: settings and tensors by GGUF's names, and the bytes as memory.
//!
//! What is behind it (one GGUF file, or a folder of safetensors) has been looked at before
//! one of these exists: every tensor lies inside its part and is as long as its shape says.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use llmpick_kernels::map::{FileMap, Pages};

use crate::error::LoadErrorKind;
use crate::{gguf, hub};

/// Settings, tensors and bytes of a model.
pub(crate) struct ModelFile {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorView>,
    parts: Vec<Arc<Bytes>>,
    /// The file's own names of tensors, where they are others.
    labels: HashMap<String, String>,
}

/// One tensor of a checked file.
#[derive(Clone, Debug)]
pub(crate) struct TensorView {
    pub dtype: GgmlDType,
    /// Outermost first: rows, then columns.
    pub dims: Vec<usize>,
    /// The part that holds it.
    pub part: usize,
    /// Where its bytes lie in that part.
    pub range: Range<usize>,
}

impl TensorView {
    /// Weights in it.
    pub fn elements(&self) -> u64 {
        self.dims.iter().map(|n| *n as u64).product()
    }
}

/// A file's bytes.
pub(crate) enum Bytes {
    Map(FileMap),
    /// A file that was never on a disk.
    Memory(Vec<u8>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::Map(map) => map.as_ref(),
            Bytes::Memory(bytes) => bytes,
        }
    }
}

impl Pages for Bytes {
    fn release(&self, range: Range<usize>) {
        match self {
            Bytes::Map(map) => map.release(range),
            Bytes::Memory(bytes) => bytes.release(range),
        }
    }
}

impl Bytes {
    /// Maps an ordinary file; `None` where it is empty, which cannot be mapped.
    pub fn map(path: &Path) -> Result<Option<Bytes>, LoadErrorKind> {
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => LoadErrorKind::Missing,
            _ => LoadErrorKind::Io(error),
        })?;
        let metadata = file.metadata().map_err(LoadErrorKind::Io)?;
        if !metadata.is_file() {
            let kind = std::io::ErrorKind::InvalidInput;
            return Err(LoadErrorKind::Io(std::io::Error::new(
                kind,
                "not an ordinary file",
            )));
        }
        if metadata.len() == 0 {
            return Ok(None);
        }
        let map = FileMap::new(&file).map_err(LoadErrorKind::Io)?;
        Ok(Some(Bytes::Map(map)))
    }
}

impl ModelFile {
    /// Maps and checks the model at `path`.
    pub fn open(path: &Path) -> Result<ModelFile, LoadErrorKind> {
        match hub::is_named(path) {
            true => hub::open(path),
            false => gguf::open(path),
        }
    }

    /// As [`open`](Self::open), where nobody will ask for tensors.
    pub fn open_settings(path: &Path) -> Result<ModelFile, LoadErrorKind> {
        match hub::is_named(path) {
            true => hub::settings(path),
            false => gguf::open(path),
        }
    }

    /// A file of these settings and no tensors yet.
    pub fn new(metadata: HashMap<String, Value>) -> ModelFile {
        ModelFile {
            metadata,
            tensors: HashMap::new(),
            parts: Vec::new(),
            labels: HashMap::new(),
        }
    }

    /// Adds bytes, and gives the number of the part that they are.
    pub fn add_part(&mut self, bytes: Bytes) -> usize {
        self.parts.push(Arc::new(bytes));
        self.parts.len() - 1
    }

    /// Adds a tensor that lies inside its part.
    pub fn add_tensor(&mut self, name: String, view: TensorView) {
        self.tensors.insert(name, view);
    }

    /// Says what the file itself calls the tensor `name`.
    pub fn label(&mut self, name: &str, own: &str) {
        self.labels.insert(name.to_owned(), own.to_owned());
    }

    /// What the file itself calls the tensor `name`.
    pub fn label_of<'a>(&'a self, name: &'a str) -> &'a str {
        self.labels.get(name).map_or(name, String::as_str)
    }

    /// Sets one of the settings.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata.insert(key.to_owned(), value);
    }

    /// The settings.
    pub fn metadata(&self) -> &HashMap<String, Value> {
        &self.metadata
    }

    /// Where a tensor lies, or `None` if the file has none of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorView> {
        self.tensors.get(name)
    }

    /// All tensors, in no order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&String, &TensorView)> {
        self.tensors.iter()
    }

    /// Bytes of all parts.
    pub fn size_bytes(&self) -> u64 {
        let size = |part: &Arc<Bytes>| (**part).as_ref().len() as u64;
        self.parts.iter().map(size).sum()
    }

    /// The bytes of a view.
    pub fn bytes(&self, view: &TensorView) -> Result<&[u8], LoadErrorKind> {
        self.parts
            .get(view.part)
            .and_then(|part| (**part).as_ref().get(view.range.clone()))
            .ok_or_else(|| LoadErrorKind::Malformed("a tensor lies outside the file".to_owned()))
    }

    /// The part that holds a view, to be kept for longer than this.
    pub fn part(&self, view: &TensorView) -> Arc<dyn Pages> {
        match self.parts.get(view.part) {
            Some(part) => Arc::clone(part) as _,
            None => Arc::new(Vec::new()),
        }
    }

    /// Gives the memory of bytes that were read back to the system, where they can be
    /// read again. Bytes that are not this file's are left alone.
    pub fn release_bytes(&self, bytes: &[u8]) {
        let start = bytes.as_ptr().addr();
        for part in &self.parts {
            let own = (**part).as_ref();
            let at = start.wrapping_sub(own.as_ptr().addr());
            if at < own.len() {
                part.release(at..at + bytes.len());
            }
        }
    }

    /// [`release_bytes`](Self::release_bytes) of a view.
    pub fn release(&self, view: &TensorView) {
        if let Some(part) = self.parts.get(view.part) {
            part.release(view.range.clone());
        }
    }

    /// [`release_bytes`](Self::release_bytes) of everything.
    pub fn release_all(&self) {
        for part in &self.parts {
            part.release(0..usize::MAX);
        }
    }
}
