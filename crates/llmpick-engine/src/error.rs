//! Why a model could not be loaded, and why it could not do its work.

use std::path::{Path, PathBuf};

use llmpick_core::BackendError;
use llmpick_kernels::KernelError;

use crate::template::TemplateError;
use crate::tokens::TokenizerError;

/// A model file that could not be made into a model.
#[derive(Debug, thiserror::Error)]
#[error("load the model `{}`", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub kind: LoadErrorKind,
}

impl LoadError {
    pub(crate) fn new(path: &Path, kind: LoadErrorKind) -> Self {
        Self {
            path: path.to_path_buf(),
            kind,
        }
    }
}

/// What is wrong with a model file; each is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadErrorKind {
    /// The file is not there.
    #[error(
        "there is no such file; pull the model, or give the path of a `.gguf` file or of a model's folder that exists"
    )]
    Missing,
    /// The file cannot be opened or mapped.
    #[error("the file cannot be read; check that it is an ordinary file you may read")]
    Io(#[source] std::io::Error),
    /// It is some other kind of file.
    #[error("this is not a GGUF file (it begins with {start}); give a model in GGUF format")]
    NotGguf {
        /// Its first bytes, printable.
        start: String,
    },
    /// A folder without a part of a model.
    #[error(
        "the folder has no `{missing}`; a model's folder holds `config.json`, `tokenizer.json` and its `.safetensors` files"
    )]
    Incomplete {
        /// The first file that is missing.
        missing: String,
    },
    /// A version of the format that is not read here.
    #[error(
        "the file is GGUF version {version}, and versions 2 and 3 are supported; convert it again with a current converter"
    )]
    Version {
        /// The version it states.
        version: u32,
    },
    /// The end is missing.
    #[error(
        "the file is cut short: {what} needs {needed} bytes and the file has {actual}; delete it and fetch it again"
    )]
    Truncated {
        /// What does not fit.
        what: String,
        /// Length the file would need.
        needed: u64,
        /// Length it has.
        actual: u64,
    },
    /// It contradicts the format or itself.
    #[error("the file is damaged: {0}; delete it and fetch it again")]
    Malformed(String),
    /// A kind of network that is not built in.
    #[error(
        "the model's architecture is `{architecture}`, and supported are {}, and slower {}; choose another model", SUPPORTED.join(", "), STOCK.join(", ")
    )]
    Architecture {
        /// `general.architecture` of the file.
        architecture: String,
    },
    /// A number format that is not built in.
    #[error(
        "the tensor `{tensor}` is quantised as {quantisation}, which is not supported; choose a file in Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, F16, BF16 or F32"
    )]
    Quantisation {
        /// The first such tensor.
        tensor: String,
        /// Name of the type, or its number.
        quantisation: String,
    },
    /// The network has a part that is not built in; running it without would give nonsense.
    #[error("the model uses {0}, which is not supported yet; choose another model")]
    Feature(String),
    /// The tokenizer in the file.
    #[error("the file's tokenizer cannot be used")]
    Tokenizer(#[source] TokenizerError),
    /// The chat template in the file.
    #[error("the file's chat template cannot be used")]
    Template(#[source] TemplateError),
    /// A matrix that the kernels refuse.
    #[error("the tensor `{tensor}` cannot be used")]
    Matrix {
        /// Which one.
        tensor: String,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The stock model that its architecture needs refuses it.
    #[error("candle's stock model cannot read it: {0}; choose another model")]
    Stock(String),
    /// The GPU cannot take it.
    #[error(
        "the GPU cannot take it ({0}); set `compute.device` to \"cpu\", or choose a smaller model"
    )]
    Device(String),
    /// It needs more than there is.
    #[error(
        "it needs {} of memory ({} of weights, {} for {context} tokens of context and working space), and {} are free; close other programs, set a smaller context, or choose a smaller model",
        Bytes(*needed), Bytes(*weights), Bytes(needed - weights), Bytes(*available)
    )]
    Memory {
        /// Bytes in all.
        needed: u64,
        /// Bytes of weights, a part of `needed`.
        weights: u64,
        /// Tokens of context counted in.
        context: u32,
        /// Bytes the machine, its cgroup, or the settings allow.
        available: u64,
    },
}

impl LoadErrorKind {
    /// What the kernels refuse about a tensor.
    pub(crate) fn tensor(name: &str, source: KernelError) -> LoadErrorKind {
        match source {
            KernelError::NotFinite { row } => LoadErrorKind::Malformed(format!(
                "the tensor `{name}` holds a number that is not finite in row {row}"
            )),
            source => LoadErrorKind::Matrix {
                tensor: name.to_owned(),
                source,
            },
        }
    }
}

/// Architectures the decoder knows, as GGUF names them. Mistral's files say `llama`.
pub const SUPPORTED: &[&str] = &[
    "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3",
];

/// Architectures that candle's stock models run, slower. A `llama` with experts in the
/// first layout of such files is run so too.
pub const STOCK: &[&str] = &["glm4", "lfm2", "phi2"];

/// Why a loaded model could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The prompt does not fit.
    #[error(
        "the prompt has {prompt_tokens} tokens, and the model's context holds {context_tokens}"
    )]
    ContextExceeded {
        /// Tokens of the rendered prompt.
        prompt_tokens: u32,
        /// Tokens of the context.
        context_tokens: u32,
    },
    /// The request makes no sense, or a value is out of range.
    #[error("{0}")]
    InvalidRequest(String),
    /// The sequence has grown beyond the memory there is.
    #[error(
        "{} more memory is needed for {tokens} tokens of context, and {} are free", Bytes(*needed), Bytes(*available)
    )]
    Memory {
        /// Bytes wanted.
        needed: u64,
        /// Bytes free.
        available: u64,
        /// Positions wanted.
        tokens: u32,
    },
    /// The client went away.
    #[error("the request was cancelled")]
    Cancelled,
    /// The text cannot be made into tokens.
    #[error("make tokens of the text")]
    Tokenizer(#[source] TokenizerError),
    /// The chat template refused the conversation.
    #[error("render the conversation with the model's chat template")]
    Template(#[source] TemplateError),
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A fault of ours; the model is dropped and loaded again for the next request.
    #[error("a fault inside the engine: {0}")]
    Fault(String),
}

impl From<EngineError> for BackendError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::ContextExceeded {
                prompt_tokens,
                context_tokens,
            } => BackendError::ContextExceeded {
                prompt_tokens,
                context_tokens,
            },
            EngineError::InvalidRequest(reason) => BackendError::InvalidRequest(reason),
            EngineError::Load(error) => BackendError::Load(Box::new(error)),
            // A template may refuse what another model's template takes (two user messages
            // in a row, a system message), so it is the arm's fault, not the request's.
            other => BackendError::Internal(Box::new(other)),
        }
    }
}

/// A number of bytes as people read it.
pub(crate) struct Bytes(pub u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.0 as f64;
        if bytes >= 1e9 {
            write!(f, "{:.2} GB", bytes / 1e9)
        } else {
            write!(f, "{:.1} MB", bytes / 1e6)
        }
    }
}
