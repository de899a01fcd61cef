//! Statements as text, with their values in them.

use super::super::engine::{Statement, Value};

pub(super) fn quote(name: &str, out: &mut String) {
    out.push('"');
    out.push_str(&name.replace('"', "\"\""));
    out.push('"');
}

/// Statements in as few packets of so many bytes as can be, and how many are in each. One that is
/// larger is a packet by itself.
pub(super) fn packets(statements: &[&Statement], most_bytes: usize) -> Vec<(Vec<u8>, usize)> {
    let mut packets: Vec<(Vec<u8>, usize)> = Vec::new();
    for statement in statements {
        let text = written(statement);
        match packets.last_mut() {
            Some((packet, count)) if packet.len() + text.len() + 2 < most_bytes => {
                packet.push(b';');
                packet.extend(text);
                *count += 1;
            }
            _ => packets.push((text, 1)),
        }
    }
    packets
}

/// A statement with its values in the place of its parameters.
fn written(statement: &Statement) -> Vec<u8> {
    let values = statement.values.iter();
    let room = values.clone().map(|value| match value {
        Value::Bytes(Some(bytes)) => bytes.len() + bytes.len() / 8 + 2,
        _ => 20,
    });
    let mut out = Vec::with_capacity(statement.sql.len() + room.sum::<usize>());
    let mut values = values;
    // Neither names nor words have a question mark: a part ends where a parameter stands.
    let mut parts = statement.sql.split('?');
    out.extend(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        match values.next() {
            Some(value) => literal(value, &mut out),
            None => out.extend(b"NULL"),
        }
        out.extend(part.as_bytes());
    }
    debug_assert!(values.next().is_none(), "{}", statement.sql);
    out
}

/// A value. The connection's character set is binary, so that no byte is part of a character, and
/// backslashes escape (`session.rs`).
fn literal(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Integer(Some(integer)) => out.extend(integer.to_string().as_bytes()),
        Value::Integer(None) | Value::Bytes(None) => out.extend(b"NULL"),
        Value::Bytes(Some(bytes)) => {
            out.push(b'\'');
            for &byte in bytes {
                match byte {
                    b'\'' | b'\\' => out.extend([b'\\', byte]),
                    0 => out.extend(b"\\0"),
                    byte => out.push(byte),
                }
            }
            out.push(b'\'');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::engine::values, *};

    #[test]
    fn values_are_written_so_that_none_ends_its_text() {
        let statement = Statement {
            sql: "SELECT ?, ?, ?, ?".to_owned(),
            values: values![i64::MIN, "it's \\ \"?\" \0", &[0xff_u8, 0xfe], None::<i64>],
        };
        assert_eq!(
            written(&statement),
            b"SELECT -9223372036854775808, 'it\\'s \\\\ \"?\" \\0', '\xff\xfe', NULL"
        );
    }

    #[test]
    fn statements_share_packets_as_far_as_they_fit() {
        let all = ["SELECT 1", "SELECT 22", "SELECT 3"].map(Statement::bare);
        let all = all.each_ref();
        assert_eq!(
            packets(&all, 1 << 20),
            [(b"SELECT 1;SELECT 22;SELECT 3".to_vec(), 3)]
        );
        assert_eq!(
            packets(&all, 21),
            [
                (b"SELECT 1;SELECT 22".to_vec(), 2),
                (b"SELECT 3".to_vec(), 1)
            ]
        );
        assert_eq!(packets(&all, 4).len(), 3);
    }
}
