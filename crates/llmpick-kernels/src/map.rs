//! A file as memory: the weights of a model without a copy of the file.
//!
//! Loading reads each tensor once, front to back, and embedding rows are read for as long
//! as the model lives. A map serves both, and pages that were read can be handed back, so
//! the file and its repacked form are never resident together.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{Mmap, UncheckedAdvice};

/// Bytes that can be read again after their memory was given back.
pub trait Pages: AsRef<[u8]> + Send + Sync {
    /// Gives the memory of a part back to the system, if it can be read again.
    fn release(&self, range: Range<usize>);
}

/// Nothing can be given back.
impl Pages for Vec<u8> {
    fn release(&self, _: Range<usize>) {}
}

/// A file mapped for reading.
#[derive(Debug)]
pub struct FileMap {
    map: Mmap,
}

impl FileMap {
    /// Maps the whole file.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private to this value and only read. What no program can rule
        // out is that somebody shortens the file meanwhile, which ends the process with
        // SIGBUS as in every program that maps files; our own store never changes a
        // published file in place (it writes beside it and renames), and nothing here
        // relies on two reads of one byte being equal.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self { map })
    }
}

impl Pages for FileMap {
    /// Gives the pages that lie wholly inside `range` back to the system; reading them
    /// again reads the file again. A range outside the file does nothing.
    fn release(&self, range: Range<usize>) {
        const PAGE: usize = 4096;
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end.min(self.map.len()) / PAGE * PAGE;
        if start >= end {
            return;
        }
        // SAFETY: the map is shared and read-only, so its pages are never dirty: dropping
        // them loses nothing, and the next read faults the same bytes in from the file.
        // A refusal leaves the pages where they are, which costs memory and nothing else.
        let _ = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
        };
    }
}

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let path = std::env::temp_dir().join(format!("llmpick-map-{}", std::process::id()));
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        File::create(&path).unwrap().write_all(&bytes).unwrap();
        let map = FileMap::new(&File::open(&path).unwrap()).unwrap();
        assert_eq!(map.as_ref(), bytes);
        map.release(1..19_999);
        map.release(0..usize::MAX);
        assert_eq!(map.as_ref(), bytes);
        std::fs::remove_file(&path).unwrap();
    }
}
