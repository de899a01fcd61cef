//! See [`nimbus_fuzz::documents::deploy`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nimbus_fuzz::documents::deploy(bytes));
