//! The memory of a model's weights: one stretch for all matrices.
//!
//! It is taken from the system as it is needed, in huge pages where there are any: a
//! decoded token reads all of it once, and with small pages every fourth kilobyte would
//! cost a walk through the page tables. It goes back to the system as a whole.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use memmap2::MmapMut;

use crate::KernelError;

/// Memory that is being written.
pub struct Slab {
    map: MmapMut,
}

impl Slab {
    /// `bytes` zeros; no memory is taken before something is written.
    pub fn new(bytes: usize) -> Result<Slab, KernelError> {
        // The system does not map nothing.
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|_| KernelError::Memory { bytes })?;
        #[cfg(target_os = "linux")]
        // Where the system has no huge pages, small ones do.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Slab { map })
    }

    /// Where it begins.
    pub fn start(&mut self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// A part of a slab that others share; the slab is there once all of it is written.
#[derive(Clone)]
pub struct Stretch {
    /// The slab, once written.
    pub slab: Arc<OnceLock<Slab>>,
    /// The part.
    pub range: Range<usize>,
}

impl Stretch {
    /// The bytes.
    ///
    /// # Panics
    /// If they were not written yet.
    pub fn bytes(&self) -> &[u8] {
        match self.slab.get() {
            Some(slab) => &slab.bytes()[self.range.clone()],
            None => panic!("the weights are used before they are packed"),
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }
}
