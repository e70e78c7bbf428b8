//! The note beside an installed model: what was verified, and how to see that it is unchanged.
//!
//! Hashing a gigabyte at every start would cost seconds; a file whose length and
//! modification time are those of the verified one is taken to be it, as `make` does.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// Raised when a key changes its meaning; another version is read as no sidecar.
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sidecar {
    pub(crate) version: u32,
    /// The source the files came from, in words.
    pub(crate) source: String,
    /// Every file of the model, the weights first.
    pub(crate) files: Vec<SidecarFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SidecarFile {
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// Modification time when it was verified, nanoseconds since 1970.
    pub(crate) modified_ns: u64,
}

impl Sidecar {
    pub(crate) fn new(source: &str, files: Vec<SidecarFile>) -> Self {
        Self {
            version: VERSION,
            source: source.into(),
            files,
        }
    }

    /// The note of a model's folder, if there is one that we can read.
    pub(crate) fn read(dir: &Path, name: &str) -> Option<Self> {
        let text = fs::read_to_string(dir.join(format!("{name}.json"))).ok()?;
        let sidecar: Self = serde_json::from_str(&text).ok()?;
        (sidecar.version == VERSION && !sidecar.files.is_empty()).then_some(sidecar)
    }

    /// Writes it so that a crash leaves the old note or the new one.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> io::Result<()> {
        let new = dir.join(format!("{name}.json.new"));
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(new, dir.join(format!("{name}.json")))
    }

    /// Whether the files are there and unchanged since they were verified.
    pub(crate) fn matches(&self, dir: &Path) -> bool {
        self.files
            .iter()
            .all(|file| stamp(&dir.join(&file.file)) == Some((file.bytes, file.modified_ns)))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Length and modification time of a regular file, through a link.
pub(crate) fn stamp(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok().filter(|m| m.is_file())?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), u64::try_from(modified.as_nanos()).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_first_format_is_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let sample = include_str!("../fixtures/sidecar-v1.json");
        fs::write(dir.path().join("tiny.json"), sample).unwrap();
        let sidecar = Sidecar::read(dir.path(), "tiny").unwrap();
        assert_eq!(sidecar.source, "hub owner/tiny-GGUF");
        assert_eq!(sidecar.bytes(), 98_362_432);
        sidecar.write(dir.path(), "again").unwrap();
        assert_eq!(Sidecar::read(dir.path(), "again"), Some(sidecar));
    }

    #[test]
    fn another_version_or_a_torn_note_is_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let sample = include_str!("../fixtures/sidecar-v1.json");
        let newer = sample.replace("\"version\": 1", "\"version\": 2");
        for text in [newer.as_str(), sample.get(..60).unwrap(), ""] {
            fs::write(dir.path().join("tiny.json"), text).unwrap();
            assert_eq!(Sidecar::read(dir.path(), "tiny"), None);
        }
    }

    #[test]
    fn a_changed_file_no_longer_matches() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        fs::write(&path, "abc").unwrap();
        let (bytes, modified_ns) = stamp(&path).unwrap();
        let file = SidecarFile {
            file: "tiny.gguf".into(),
            bytes,
            sha256: String::new(),
            modified_ns,
        };
        let sidecar = Sidecar::new("test", vec![file]);
        assert!(sidecar.matches(dir.path()));
        fs::write(&path, "abcd").unwrap();
        assert!(!sidecar.matches(dir.path()));
    }
}
