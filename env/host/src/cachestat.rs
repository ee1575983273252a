//! An image in the host's page cache: how much of it is there (`cachestat(2)`, Linux 6.5 and later), and
//! writing it back (`sync_file_range(2)`).
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

/// Writes back the dirty pages of a part of an image, or block device, and waits for them; what has been
/// written to the device may still be in its own cache.
///
/// # Errors
/// `ENOSPC` and `EIO` from the device, once for each time that the file is open.
pub(crate) fn write_back_range(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = offset.try_into().map_err(too_large)?;
    let length = length.try_into().map_err(too_large)?;
    // SAFETY: the descriptor is open while `file` is borrowed; no memory is passed.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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

    #[test]
    fn a_part_that_was_written_back_is_clean_though_opened_to_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 1 << 16]).unwrap();
        let reader = File::open(file.path()).unwrap();
        write_back_range(&reader, 0, 1 << 16).unwrap();
        if let Ok(counts) = cached_bytes(file.path()) {
            assert_eq!(counts.dirty, 0);
        }
        assert!(write_back_range(&reader, u64::MAX, 1).is_err());
    }
}
