//! A file that is on this machine already, named by a card.

use std::path::PathBuf;

use crate::pull::{Origin, Staged, StagedFile};
use crate::{LocalSource, ModelCard, SourceError};

/// The user's file, to be verified against the card and linked; never moved or deleted.
/// Extra files lie beside it under their own names.
pub(crate) fn stage(source: &LocalSource, card: &ModelCard) -> Result<Staged, SourceError> {
    let weights = PathBuf::from(&source.path);
    let folder = weights.parent().map(PathBuf::from).unwrap_or_default();
    let extra = card
        .extra
        .iter()
        .map(|file| (file, folder.join(&file.file)));
    let mut files = Vec::new();
    for (file, path) in std::iter::once((&card.file, weights.clone())).chain(extra) {
        if !path.is_file() {
            return Err(SourceError::Absent);
        }
        files.push(StagedFile {
            file: file.file.clone(),
            path,
            bytes: file.bytes,
            sha256: file.sha256.clone(),
            origin: Origin::User,
        });
    }
    Ok(Staged { files })
}
