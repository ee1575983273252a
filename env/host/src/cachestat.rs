//! How much of an image the host's page cache holds: `cachestat(2)`, Linux 6.5 and later.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::libc;

use crate::error::{HostError, HostResult};

/// Not in libc yet; the number is the same on all architectures.
const SYS_CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct Range {
    offset: u64,
    /// 0 means up to the end.
    length: u64,
}

#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// An image in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CachedBytes {
    /// All its pages.
    pub cached: u64,
    /// Its pages that have still to be written back, or are being.
    pub dirty: u64,
}

/// Pages of an image, or block device, in the page cache.
///
/// # Errors
/// `Io`, also on kernels without the call (`ENOSYS`).
pub fn cached_bytes(image: &Path) -> HostResult<CachedBytes> {
    let file = File::open(image).map_err(HostError::io(image))?;
    let range = Range {
        offset: 0,
        length: 0,
    };
    let mut counts = Counts::default();
    let page = procfs::page_size();
    // SAFETY: the descriptor is open; both pointers are to live values with the kernel's layout.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut counts,
            0,
        )
    };
    if result != 0 {
        return Err(HostError::io(image)(io::Error::last_os_error()));
    }
    Ok(CachedBytes {
        cached: counts.cached * page,
        dirty: (counts.dirty + counts.writeback) * page,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_was_just_written_is_cached() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 1 << 16]).unwrap();
        match cached_bytes(file.path()) {
            Ok(counts) => assert!(counts.cached >= 1 << 16, "{counts:?}"),
            // A kernel before 6.5.
            Err(HostError::Io { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(libc::ENOSYS));
            }
            Err(error) => panic!("{error}"),
        }
    }
}
