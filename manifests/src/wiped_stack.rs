//! Work on keys leaves nothing of them on the stack.
//!
//! Types that wipe themselves do not reach what the compiler and the cryptographic crates leave in
//! dead frames: moved values, and locals without a destructor such as the last block of HKDF. A
//! thread that rests keeps them until other calls happen to overwrite them.

use zeroize::zeroize_stack;

/// More than any computation on a key uses here, in a debug build, too.
const BYTES: usize = 32 << 10;

/// The result of `compute`, whose dead frames are overwritten before this returns.
///
/// `compute` should write a key in place or return what owns it by a pointer: a key that is
/// returned by value is moved through the caller's own frame.
pub fn on_wiped_stack<R>(compute: impl FnOnce() -> R) -> R {
    let result = apart(compute);
    zeroize_stack::<BYTES>();
    result
}

/// A frame of its own, below the caller's: `zeroize_stack` reaches the same bytes.
#[inline(never)]
fn apart<R>(compute: impl FnOnce() -> R) -> R {
    compute()
}
