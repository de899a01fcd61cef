//! Statements as text, with their values in them.

use super::super::engine::{Statement, Value};

pub(super) fn quote(name: &str, out: &mut String) {
    out.push('"');
    out.push_str(&name.replace('"', "\"\""));
    out.push('"');
}

/// A statement that does not have a value for each of its parameters, and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a statement has {parameters} parameters and {values} values")]
pub(super) struct Miscounted {
    parameters: usize,
    values: usize,
}

/// Statements in as few packets of so many bytes as can be, and how many are in each. One that is
/// larger is a packet by itself.
pub(super) fn packets(
    statements: &[&Statement],
    most_bytes: usize,
) -> Result<Vec<(Vec<u8>, usize)>, Miscounted> {
    let mut packets: Vec<(Vec<u8>, usize)> = Vec::new();
    for statement in statements {
        let text = written(statement)?;
        match packets.last_mut() {
            Some((packet, count)) if packet.len() + text.len() + 2 < most_bytes => {
                packet.push(b';');
                packet.extend(text);
                *count += 1;
            }
            _ => packets.push((text, 1)),
        }
    }
    Ok(packets)
}

/// A statement with its values in the place of its parameters.
fn written(statement: &Statement) -> Result<Vec<u8>, Miscounted> {
    // Neither names nor words have a question mark.
    let parameters = statement.sql.bytes().filter(|byte| *byte == b'?').count();
    if parameters != statement.values.len() {
        let values = statement.values.len();
        return Err(Miscounted { parameters, values });
    }
    let values = statement.values.iter();
    let room = values.clone().map(|value| match value {
        Value::Bytes(Some(bytes)) => bytes.len() + bytes.len() / 8 + 2,
        _ => 20,
    });
    let mut out = Vec::with_capacity(statement.sql.len() + room.sum::<usize>());
    let mut parts = statement.sql.split('?');
    out.extend(parts.next().unwrap_or_default().as_bytes());
    for (value, part) in values.zip(parts) {
        literal(value, &mut out);
        out.extend(part.as_bytes());
    }
    Ok(out)
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
            written(&statement).unwrap(),
            b"SELECT -9223372036854775808, 'it\\'s \\\\ \"?\" \\0', '\xff\xfe', NULL"
        );
    }

    #[test]
    fn a_value_too_few_or_too_many_is_refused_and_never_null() {
        for values in [values![], values![1_i64], values![1_i64, 2_i64, 3_i64]] {
            let statement = Statement {
                sql: "DELETE FROM t WHERE a = ? AND b = ?".to_owned(),
                values: values.clone(),
            };
            let miscounted = Miscounted {
                parameters: 2,
                values: values.len(),
            };
            assert_eq!(packets(&[&statement], 1 << 20), Err(miscounted));
        }
    }

    #[test]
    fn statements_share_packets_as_far_as_they_fit() {
        let all = ["SELECT 1", "SELECT 22", "SELECT 3"].map(Statement::bare);
        let all = all.each_ref();
        assert_eq!(
            packets(&all, 1 << 20).unwrap(),
            [(b"SELECT 1;SELECT 22;SELECT 3".to_vec(), 3)]
        );
        assert_eq!(
            packets(&all, 21).unwrap(),
            [
                (b"SELECT 1;SELECT 22".to_vec(), 2),
                (b"SELECT 3".to_vec(), 1)
            ]
        );
        assert_eq!(packets(&all, 4).unwrap().len(), 3);
    }
}
