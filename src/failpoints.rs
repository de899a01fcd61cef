//! Named points at which a test can kill the process, as a power cut would.
//!
//! A test sets `FAILPOINTS="<name>=return"` in the environment of a child built with the
//! `failpoints` feature; a build without the feature contains none of this.

/// Dies with `SIGKILL` here when the named failpoint is armed: no destructor runs, no buffer is
/// flushed.
macro_rules! crash_point {
    ($name:literal) => {
        ::fail::fail_point!($name, |_| $crate::failpoints::die())
    };
}
pub(crate) use crash_point;

/// Kills this process the way a power cut would: nothing runs after it.
#[cfg(feature = "failpoints")]
pub(crate) fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}
