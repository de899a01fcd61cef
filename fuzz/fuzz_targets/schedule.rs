//! See [`nimbus_fuzz::documents::schedule`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nimbus_fuzz::documents::schedule(bytes));
