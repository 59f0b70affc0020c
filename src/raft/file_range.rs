//! Makes sled's own syncs real ones.
//!
//! On Linux sled counts what it has written as durable after `sync_file_range`, which is no promise: neither metadata nor
//! the drive's cache is written (sync_file_range(2)). It relies on it all the same: it takes the space of what was replaced into use
//! again, and after a failure it does not look for tears where it takes everything for durable. So this program has a
//! function of that name, which syncs the file; the linker prefers it to the C library's. Nobody else in this process calls
//! it. Decision record 0021.
//!
//! Elsewhere sled syncs the file by itself.

/// Whether sled's syncs come here, or are real by themselves.
#[cfg(target_os = "linux")]
pub fn is_in_effect() -> bool {
    linux::is_in_effect()
}

/// Whether sled's syncs come here, or are real by themselves.
#[cfg(not(target_os = "linux"))]
pub fn is_in_effect() -> bool {
    true
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a function of the C library, under its name")]
mod linux {
    use std::ffi::{c_int, c_uint};

    /// As sync_file_range(2), but for the whole file, and for good.
    ///
    /// # Safety
    /// None is needed: a number that is no file's gives an error.
    // SAFETY: it has the type of the C library's function and does no less than that one.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn sync_file_range(file: c_int, _at: i64, _count: i64, _flags: c_uint) -> c_int {
        // SAFETY: fdatasync takes any number.
        unsafe { libc::fdatasync(file) }
    }

    pub fn is_in_effect() -> bool {
        std::ptr::fn_addr_eq(
            libc::sync_file_range as unsafe extern "C" fn(c_int, i64, i64, c_uint) -> c_int,
            sync_file_range as unsafe extern "C" fn(c_int, i64, i64, c_uint) -> c_int,
        )
    }

    #[test]
    fn sleds_syncs_come_here() {
        assert!(is_in_effect());
    }
}
