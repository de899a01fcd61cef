//! The end of the process, now: no destructor runs and no handler, while other threads may be in
//! the middle of something.

/// Ends the process with `code`. The kernel frees what it holds, its locks on the data last of all.
pub fn exit_now(code: u8) -> ! {
    unsafe extern "C" {
        fn _exit(code: std::ffi::c_int) -> !;
    }
    // SAFETY: POSIX has it, by this name and with this signature; any thread may call it at any
    // time.
    unsafe { _exit(code.into()) }
}
