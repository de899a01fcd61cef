//! What holds of every access key, and of what only looks like one.

use std::sync::Mutex;

use nimbus_access_keys::{AccessKey, KeyName, RandomError, SecureRandom};

/// What is accepted has one spelling. The first 42 bytes are a key that is drawn, which is read as
/// it was shown; the rest is put into its text from a place that the rest names, and then alone for
/// a key, an id and a name.
pub fn access_key(bytes: &[u8]) {
    let (drawn, rest) = bytes.split_at(bytes.len().min(DRAWN_BYTES));
    let bytes = Drawn(Mutex::new(
        drawn.iter().copied().collect::<Vec<_>>().into_iter(),
    ));
    let key = AccessKey::draw(&bytes).expect("it gives bytes");
    let shown = key.expose();
    let again = AccessKey::parse(shown.as_bytes()).expect("our own");
    assert_eq!(again.id(), key.id());
    assert_eq!(again.expose(), shown);

    let (at, put) = rest.split_first().unwrap_or((&0, &[]));
    let mut changed = shown.as_bytes().to_vec();
    let at = usize::from(*at) % changed.len();
    let _old: Vec<u8> = changed
        .splice(at..changed.len().min(at + put.len()), put.iter().copied())
        .collect();
    assert_one_spelling(&changed);
    assert_one_spelling(rest);
    let Ok(text) = str::from_utf8(rest) else {
        return;
    };
    if let Ok(name) = text.parse::<KeyName>() {
        assert_eq!(name.as_str(), text);
        assert!((1..=100).contains(&text.chars().count()));
        assert!(!text.contains(char::is_control));
    }
    if let Ok(id) = text.parse::<nimbus_access_keys::AccessKeyId>() {
        assert_eq!(id.to_string(), text);
    }
}

/// The check is 24 bits, so a fuzzer may well hit one; what it hit is spelled in no other way.
fn assert_one_spelling(text: &[u8]) {
    if let Some(key) = AccessKey::parse(text) {
        assert_eq!(key.expose().as_bytes(), text);
    }
}

/// The fuzzer's bytes in their order, and zeroes after them.
#[derive(Debug)]
struct Drawn(Mutex<std::vec::IntoIter<u8>>);

impl SecureRandom for Drawn {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        let mut drawn = self.0.lock().expect("nobody else");
        bytes.fill_with(|| drawn.next().unwrap_or_default());
        Ok(())
    }
}

/// Of the id, and of the secret.
const DRAWN_BYTES: usize = 42;
