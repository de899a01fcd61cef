//! An allocator that wipes what is given back to it.
//!
//! Keys have wiping types of their own; what passes through code of others does not: a reply of KMS
//! in the buffers of HTTP and TLS, a task's state that was moved. Whatever such code frees is gone
//! here, and not for the next finder of that memory.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with blocks of up to 64 KiB wiped when they are freed. No key passes
/// through larger ones, which are bodies and pages, and whose wiping would cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct WipingAllocator;

// SAFETY: every call is passed on to the system's allocator with its own arguments, and a block is
// written to only while it is owned.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() <= WIPED {
            // SAFETY: the block has this size and is its caller's, who gives it up.
            unsafe { wipe(block, layout.size()) };
        }
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() > WIPED {
            // SAFETY: as above.
            return unsafe { System.realloc(block, layout, size) };
        }
        // The system may leave the old block as it is: the new one is taken first, and the old one
        // wiped. SAFETY: the size is not zero and fits with its alignment, as the caller promises.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both blocks are this caller's, distinct, and at least so long; the old one is
            // given up.
            unsafe {
                std::ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                self.dealloc(block, layout);
            }
        }
        new
    }
}

/// Writes zeros that the compiler does not leave out because nobody reads them.
///
/// # Safety
///
/// The block is writable for `size` bytes.
unsafe fn wipe(block: *mut u8, size: usize) {
    // SAFETY: as the caller promises.
    unsafe { block.write_bytes(0, size) };
    // SAFETY: no instruction; whatever it might be must find the zeros.
    unsafe { std::arch::asm!("/* {0} */", in(reg) block, options(nostack, preserves_flags)) };
}

const WIPED: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_what_it_was_asked_for_and_keeps_content_when_a_block_grows_or_shrinks() {
        let layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: the layout is the one each block was made with.
        unsafe {
            let block = WipingAllocator.alloc(layout);
            block.write_bytes(7, 100);
            let block = WipingAllocator.realloc(block, layout, 100_000);
            assert!((0..100).all(|at| *block.add(at) == 7));
            let large = Layout::from_size_align(100_000, 8).unwrap();
            let block = WipingAllocator.realloc(block, large, 10);
            assert!((0..10).all(|at| *block.add(at) == 7));
            WipingAllocator.dealloc(block, Layout::from_size_align(10, 8).unwrap());
        }
    }

    #[test]
    fn wipes_a_block() {
        let mut block = [9_u8; 64];
        // SAFETY: the block is this function's.
        unsafe { wipe(block.as_mut_ptr(), 64) };
        assert_eq!(block, [0; 64]);
    }
}
