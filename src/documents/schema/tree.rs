//! Documents as trees of values, for the time of one check.
//!
//! A tree can take a hundred times its text (one object a few bytes). Each thread that writes or
//! scans a table may hold one. Large trees share a budget, and a check waits until it has room.
//! A tenant has at most one large tree at a time, so a check waits for at most one check per other
//! tenant. Nothing is compiled meanwhile.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// Does something with the tree of a JSON text, which is of this tenant.
pub(super) fn with_tree<R>(
    tenant: &str,
    json: &str,
    work: impl FnOnce(&Value) -> R,
) -> Result<R, serde_json::Error> {
    let _room = TREES.take(tenant, weight(json));
    let tree = serde_json::from_str(json)?;
    Ok(work(&tree))
}

/// No less than the tree takes: each value and each name, and for each object that has members a
/// node of a map.
fn weight(json: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    let (mut values, mut objects) = (1, 0);
    let mut bytes = json.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            // Nothing is in it. With white space in it, it is taken for more than it is.
            b'[' if bytes.peek() == Some(&b']') => {}
            b'{' if bytes.peek() == Some(&b'}') => {}
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
    taken: Mutex<Use>,
    freed: Condvar,
    /// Held by who waits for room: whoever comes later is behind.
    line: Mutex<()>,
}

/// How much is taken, and by which tenants. One that waits for room is among them.
#[derive(Debug, Default)]
struct Use {
    bytes: usize,
    tenants: Option<HashSet<String>>,
}

/// Some of it, until dropped.
#[derive(Debug)]
struct Taken<'a> {
    room: &'a Room,
    tenant: &'a str,
    bytes: usize,
}

impl Room {
    const fn new(all: usize) -> Self {
        Self {
            all,
            taken: Mutex::new(Use {
                bytes: 0,
                tenants: None,
            }),
            freed: Condvar::new(),
            line: Mutex::new(()),
        }
    }

    /// Waits for room. Little is always there; more than all is all.
    fn take<'a>(&'a self, tenant: &'a str, bytes: usize) -> Option<Taken<'a>> {
        if bytes <= SMALL_BYTES {
            return None;
        }
        let mut room = Taken {
            room: self,
            tenant,
            bytes: 0,
        };
        // Not queued: a tenant that waits for itself delays no other.
        let has_one = |taken: &mut Use| {
            taken
                .tenants
                .as_ref()
                .is_some_and(|all| all.contains(tenant))
        };
        let mut taken = self.wait_while(has_one);
        let tenants = taken.tenants.get_or_insert_default();
        tenants.insert(tenant.to_owned());
        drop(taken);
        let bytes = bytes.min(self.all);
        let _first = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        self.wait_while(|taken| taken.bytes + bytes > self.all)
            .bytes += bytes;
        room.bytes = bytes;
        Some(room)
    }

    fn wait_while(&self, condition: impl FnMut(&mut Use) -> bool) -> MutexGuard<'_, Use> {
        let waited = self.freed.wait_while(self.taken(), condition);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> MutexGuard<'_, Use> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.bytes -= self.bytes;
        if let Some(tenants) = &mut taken.tenants {
            tenants.remove(self.tenant);
        }
        drop(taken);
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
        let first = ROOM.take("a", 8 * SMALL_BYTES);
        assert!(ROOM.take("a", SMALL_BYTES).is_none());
        let (send, received) = mpsc::channel();
        let other = thread::spawn(move || {
            let taken = ROOM.take("b", 100 * SMALL_BYTES);
            send.send(taken.as_ref().map(|taken| taken.bytes)).unwrap();
        });
        thread::yield_now();
        assert!(received.try_recv().is_err());
        drop(first);
        assert_eq!(received.recv().unwrap(), Some(10 * SMALL_BYTES));
        other.join().unwrap();
        assert_eq!(ROOM.taken().bytes, 0);
    }

    #[test]
    fn a_tenant_has_one_large_tree_and_is_in_no_other_tenants_way() {
        static ROOM: Room = Room::new(10 * SMALL_BYTES);
        let first = ROOM.take("a", 2 * SMALL_BYTES);
        let (send, received) = mpsc::channel();
        let again = thread::spawn(move || {
            let _taken = ROOM.take("a", 2 * SMALL_BYTES);
            send.send(()).unwrap();
        });
        // There is room for three more, and others get it while the tenant waits for itself.
        for _ in 0..100 {
            assert!(ROOM.take("b", 2 * SMALL_BYTES).is_some());
            assert!(received.try_recv().is_err());
        }
        drop(first);
        received.recv().unwrap();
        again.join().unwrap();
        assert_eq!(ROOM.taken().tenants, Some(HashSet::new()));
    }

    #[test]
    fn no_document_is_taken_for_more_than_half_of_the_room() {
        let small = [r#"{"":0},"#, "0,", "[],", "{},", r#"{"a":0,"b":0,"c":0},"#];
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
