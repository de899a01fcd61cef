//! Documents as trees of values, for the time of one check.
//!
//! A tree can take ninety times its text (one object a few bytes). Trees are there one a thread that writes, or looks through
//! a table, of any tenant; so all that are large together have so much room, and the next waits until there is some. It waits for less
//! than a second: a check is bounded.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// Does something with the tree of a JSON text.
pub(super) fn with_tree<R>(
    json: &str,
    work: impl FnOnce(&Value) -> R,
) -> Result<R, serde_json::Error> {
    let _room = TREES.take(weight(json));
    let tree = serde_json::from_str(json)?;
    Ok(work(&tree))
}

/// No less than the tree takes: each value and each name, and for each object a node of a map.
fn weight(json: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    let (mut values, mut objects) = (1, 0);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b',' | b'[' => values += 1,
            b'{' => {
                values += 1;
                objects += 1;
            }
            _ => {}
        }
    }
    json.len() + values * VALUE_BYTES + objects * OBJECT_BYTES
}

/// Room that is taken and given back.
#[derive(Debug)]
struct Room {
    all: usize,
    taken: Mutex<usize>,
    freed: Condvar,
    /// Held by who waits: whoever comes later is behind.
    line: Mutex<()>,
}

/// Some of it, until dropped.
#[derive(Debug)]
struct Taken<'a> {
    room: &'a Room,
    bytes: usize,
}

impl Room {
    const fn new(all: usize) -> Self {
        Self {
            all,
            taken: Mutex::new(0),
            freed: Condvar::new(),
            line: Mutex::new(()),
        }
    }

    /// Waits for room. Little is always there; more than all is all.
    fn take(&self, bytes: usize) -> Option<Taken<'_>> {
        if bytes <= SMALL_BYTES {
            return None;
        }
        let bytes = bytes.min(self.all);
        let _first = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut usize| *taken + bytes > self.all;
        let taken = self.freed.wait_while(self.taken(), full);
        *taken.unwrap_or_else(PoisonError::into_inner) += bytes;
        Some(Taken { room: self, bytes })
    }

    fn taken(&self) -> MutexGuard<'_, usize> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.room.taken() -= self.bytes;
        self.room.freed.notify_all();
    }
}

static TREES: Room = Room::new(TREE_BYTES);

/// What all large trees may take together: two of the largest that a document can have.
const TREE_BYTES: usize = 288 << 20;
/// Trees that no room is taken for.
const SMALL_BYTES: usize = 256 << 10;
/// A value and its name, with what lists and maps leave free.
const VALUE_BYTES: usize = 144;
/// The first node of a map.
const OBJECT_BYTES: usize = 656;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_tree_waits_for_room() {
        static ROOM: Room = Room::new(10 * SMALL_BYTES);
        let first = ROOM.take(8 * SMALL_BYTES);
        assert!(ROOM.take(SMALL_BYTES).is_none());
        let (send, received) = mpsc::channel();
        let other = thread::spawn(move || {
            let taken = ROOM.take(100 * SMALL_BYTES);
            send.send(taken.as_ref().map(|taken| taken.bytes)).unwrap();
        });
        thread::yield_now();
        assert!(received.try_recv().is_err());
        drop(first);
        assert_eq!(received.recv().unwrap(), Some(10 * SMALL_BYTES));
        other.join().unwrap();
        assert_eq!(*ROOM.taken(), 0);
    }

    #[test]
    fn no_document_is_taken_for_more_than_half_of_the_room() {
        let small = [r#"{"":0},"#, "0,", "[],", r#"{"a":0,"b":0,"c":0},"#];
        for item in small {
            let count = crate::documents::MAX_FIELDS_BYTES / item.len() - 2;
            let json = format!(r#"{{"a":[{}0]}}"#, item.repeat(count));
            let weight = weight(&json);
            assert!(weight <= TREE_BYTES / 2, "{item} {weight}");
        }
        // What is quoted opens nothing.
        let quoted = r#""{\"{,""#;
        assert_eq!(weight(quoted), quoted.len() + VALUE_BYTES);
    }
}
