//! The system's cache of file pages: what of a file is in memory, and how to get it out.
//!
//! A load from a disk and a load from this cache differ tenfold. Who measures one of them
//! must be able to bring it about, and to see that it was.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use memmap2::Mmap;

/// Asks the system to drop a file's pages from its cache. Written pages go to the disk
/// first; pages that some process has mapped and touched stay. Needs no privileges.
///
/// # Errors
/// What the system says, or that this system has no such call.
pub fn drop_cached(file: &File) -> io::Result<()> {
    file.sync_all()?;
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the descriptor is open as long as `file` is borrowed; no memory is passed.
        let code =
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        match code {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file.as_raw_fd();
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Pages of a file that are in memory, and its pages in all.
///
/// # Errors
/// What the system says, or that this system has no such call.
pub fn cached_pages(file: &File) -> io::Result<(usize, usize)> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: mapped, never read: should the file be shortened meanwhile, the system
        // reports absent pages and no more.
        let map = unsafe { Mmap::map(file)? };
        // SAFETY: a query without arguments that are memory.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(io::Error::other)?;
        let pages = map.len().div_ceil(page);
        let mut present = vec![0u8; pages];
        let start = map.as_ptr().cast_mut().cast();
        // SAFETY: the range is the live map's, and `present` has a byte for each of its pages.
        match unsafe { libc::mincore(start, map.len(), present.as_mut_ptr()) } {
            0 => Ok((present.iter().filter(|page| **page & 1 == 1).count(), pages)),
            _ => Err(io::Error::last_os_error()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, size_of::<Mmap>());
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_just_written_is_in_memory_and_can_be_dropped() {
        let path = std::env::temp_dir().join(format!("llmpick-cache-{}", std::process::id()));
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        let (present, pages) = cached_pages(&file).unwrap();
        assert_eq!((present, pages), (256, 256));
        drop_cached(&file).unwrap();
        let (present, pages) = cached_pages(&file).unwrap();
        // A file system in memory keeps its pages; on any other they are gone.
        assert!(present == 0 || present == pages, "{present} of {pages}");
        assert_eq!(std::fs::read(&path).unwrap(), vec![7u8; 1 << 20]);
        assert_eq!(cached_pages(&file).unwrap(), (256, 256));
        std::fs::remove_file(&path).unwrap();
    }
}
