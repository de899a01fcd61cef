//! See [`nimbus_fuzz::verify`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nimbus_fuzz::verify(bytes));
