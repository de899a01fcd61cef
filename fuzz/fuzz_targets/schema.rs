//! See [`nimbus_fuzz::documents::schema`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nimbus_fuzz::documents::schema(bytes));
