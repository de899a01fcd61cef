//! What holds of every input; each fuzz target asserts one of these.

pub mod documents;
pub mod keys;

use nimbus_manifests::{MacKey, MacMismatch, SealedManifest};

/// Nothing that is not a manifest does worse than being refused, with a message that can be
/// printed.
pub fn parse(bytes: &[u8]) {
    if let Err(refused) = SealedManifest::parse(bytes) {
        assert!(refused.to_string().len() < 2048);
    }
}

/// What is accepted has one spelling: it is written as it was read, and nothing shorter of it is
/// accepted.
pub fn round_trip(bytes: &[u8]) {
    let Ok(sealed) = SealedManifest::parse(bytes) else {
        return;
    };
    assert_eq!(sealed.as_bytes(), bytes);
    for cut in [1, 2, 45, 46, bytes.len() / 2] {
        assert!(SealedManifest::parse(&bytes[..bytes.len() - cut]).is_err());
    }
}

/// A manifest verifies under a key exactly when sealing with that key writes it; sealed anew, it
/// verifies, and with one bit changed it does not.
pub fn verify(bytes: &[u8]) {
    let Ok(sealed) = SealedManifest::parse(bytes) else {
        return;
    };
    let key = MacKey::init_with(|key| key.copy_from_slice(&VECTOR_KEY));
    let again = sealed.claims().seal(&key);
    match sealed.verify(&key) {
        Ok(manifest) => {
            assert_eq!(manifest, sealed.claims());
            assert_eq!(again.as_bytes(), bytes);
        }
        Err(MacMismatch) => assert_ne!(again.as_bytes(), bytes),
    }
    assert_eq!(again.verify(&key), Ok(sealed.claims()));

    // Which bit is drawn from the input, by way of its MAC.
    let mut changed = again.as_bytes().to_vec();
    let drawn = bytes[bytes.len() - 45..].iter().fold(0_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
    });
    let at = drawn / 8 % changed.len();
    changed[at] ^= 1 << (drawn % 8);
    if let Ok(changed) = SealedManifest::parse(&changed) {
        assert_eq!(changed.verify(&key), Err(MacMismatch));
    }
}

/// The manifest key of most vectors, so that their seeds verify: `manifest_key` in
/// manifests/tests/vectors/accepted.json.
const VECTOR_KEY: [u8; 32] = [
    0x29, 0xd0, 0x7b, 0x1d, 0x92, 0x7c, 0xca, 0x0a, 0x6d, 0x4f, 0x00, 0xc4, 0xb5, 0x2d, 0x39, 0x18,
    0x02, 0x69, 0xc2, 0xad, 0x59, 0x4d, 0xcd, 0xbb, 0x49, 0x54, 0xc9, 0xab, 0x51, 0x55, 0xb9, 0x69,
];
