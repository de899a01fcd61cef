//! Checks of a pattern before it is compiled: they bound the time that it takes to compile.

use crate::documents::error::excerpt;

/// What patterns a schema has so far.
#[derive(Debug, Default)]
pub(super) struct Patterns<'a> {
    /// Those that texts are matched with.
    pub(super) texts: Vec<&'a str>,
    /// Those that the names of an object are matched with, together.
    pub(super) names: Vec<Vec<&'a str>>,
    count: usize,
    bytes: usize,
}

impl<'a> Patterns<'a> {
    /// Takes a pattern for texts.
    pub(super) fn of_text(&mut self, pattern: &'a str) -> Result<(), String> {
        self.admit(pattern)?;
        self.texts.push(pattern);
        Ok(())
    }

    /// Takes the patterns for the names of an object.
    pub(super) fn of_names(&mut self, patterns: Vec<&'a str>) -> Result<(), String> {
        for pattern in &patterns {
            self.admit(pattern)?;
        }
        self.names.push(patterns);
        Ok(())
    }

    fn admit(&mut self, pattern: &str) -> Result<(), String> {
        self.count += 1;
        self.bytes += pattern.len();
        if self.count > MAX_PATTERNS {
            return Err(format!("it has more than {MAX_PATTERNS} patterns"));
        }
        if self.bytes > MAX_PATTERNS_BYTES {
            return Err(format!(
                "its patterns have more than {MAX_PATTERNS_BYTES} bytes together"
            ));
        }
        slow(pattern).map_or(Ok(()), |reason| {
            Err(format!(
                "the pattern {:?} cannot be used: {reason}",
                excerpt(pattern)
            ))
        })
    }
}

/// Why a pattern could take minutes to compile.
fn slow(pattern: &str) -> Option<String> {
    if pattern.len() > MAX_PATTERN_BYTES {
        let length = pattern.len();
        return Some(format!(
            "it has {length} bytes, over the limit of {MAX_PATTERN_BYTES}"
        ));
    }
    let mut characters = pattern.chars().peekable();
    let (mut in_class, mut opened) = (false, false);
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                // The crate parses the whole pattern again for each.
                let escaped = characters.next();
                if escaped == Some('c') {
                    return Some(
                        "it has a control escape (`\\cJ`): write `\\x0A` or `\\n`".to_owned(),
                    );
                }
            }
            ']' => in_class = false,
            '[' => in_class = true,
            // To fold the case of a class goes over all of its characters, and a class may have a
            // million.
            '?' if opened && characters.peek().is_some_and(|flag| FLAGS.contains(*flag)) => {
                return Some(
                    "it sets flags (`(?i)`), which ECMA-262 does not have: write `[aA]` for either case"
                        .to_owned(),
                );
            }
            _ => {}
        }
        opened = character == '(' && !in_class;
    }
    None
}

/// What may stand behind `(?` and set or clear a flag.
const FLAGS: &str = "-imsuUxR";
/// How many patterns there may be, each of which takes memory.
const MAX_PATTERNS: usize = 100;
/// The longest, in bytes.
const MAX_PATTERN_BYTES: usize = 4 << 10;
/// What all of a schema may have together.
const MAX_PATTERNS_BYTES: usize = 16 << 10;
