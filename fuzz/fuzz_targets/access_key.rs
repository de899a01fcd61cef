//! See [`nimbus_fuzz::keys::access_key`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nimbus_fuzz::keys::access_key(bytes));
