//! The search: every byte of everything a server has written, for every form of what must not be
//! there.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use nimbus_test_support::{Machine, files_under};

/// Something to look for, in every form in which it would give itself away.
#[derive(Debug, Clone)]
pub(crate) struct Needle {
    name: String,
    forms: Vec<Vec<u8>>,
}

impl Needle {
    /// A text: as it is, and as UTF-16.
    pub(crate) fn text(text: &str) -> Self {
        let wide = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect();
        Self {
            name: text.to_owned(),
            forms: vec![text.into(), wide(u16::to_le_bytes), wide(u16::to_be_bytes)],
        }
    }

    /// A key: its bytes, each half of them, and the forms in which keys are printed.
    pub(crate) fn key(name: &str, key: &[u8]) -> Self {
        assert_eq!(key.len(), 32, "{name}");
        let numbers: Vec<String> = key.iter().map(u8::to_string).collect();
        Self {
            name: name.to_owned(),
            forms: vec![
                key[..16].to_vec(),
                key[16..].to_vec(),
                HEXLOWER.encode(&key[..16]).into(),
                HEXLOWER.encode(&key[16..]).into(),
                HEXUPPER.encode(&key[..16]).into(),
                HEXUPPER.encode(&key[16..]).into(),
                BASE64.encode(key)[..40].into(),
                // As Debug prints them.
                numbers[..16].join(", ").into(),
            ],
        }
    }
}

/// Where something was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) needle: String,
    pub(crate) file: String,
    pub(crate) offset: Option<usize>,
}

/// Everything that a machine's servers have written.
pub(crate) struct Hunt(Vec<(String, Vec<u8>)>);

impl Hunt {
    /// Every file of the machine but the token and these keys: they are where they should be.
    pub(crate) fn over(machine: &Machine, keys: &[PathBuf]) -> Self {
        let mut files = files_under(machine.root());
        files.retain(|file| !keys.contains(file) && *file != machine.token_file());
        Self::over_files(files)
    }

    /// These files.
    pub(crate) fn over_files(mut files: Vec<PathBuf>) -> Self {
        // A socket keeps nothing.
        let is_socket = |file: &PathBuf| {
            fs::symlink_metadata(file).is_ok_and(|about| about.file_type().is_socket())
        };
        files.retain(|file| !is_socket(file));
        let read = |file: PathBuf| {
            let content = fs::read(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
            let name = file
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, content)
        };
        Self(files.into_iter().map(read).collect())
    }

    /// Where any form of any needle is, the first place in each file. Names of files count, too.
    pub(crate) fn find(&self, needles: &[Needle]) -> Vec<Found> {
        // One pass over the bytes, whatever the number of forms.
        let mut by_first_byte = vec![Vec::new(); 256];
        for needle in needles {
            for form in &needle.forms {
                by_first_byte[usize::from(form[0])].push((needle, form));
            }
        }
        let mut found = Vec::new();
        for (name, content) in &self.0 {
            let searched = [name.as_bytes(), b"\n", content].concat();
            let mut seen: Vec<&[u8]> = Vec::new();
            for (at, byte) in searched.iter().enumerate() {
                for (needle, form) in &by_first_byte[usize::from(*byte)] {
                    if searched[at..].starts_with(form) && !seen.contains(&form.as_slice()) {
                        seen.push(form);
                        found.push(Found {
                            needle: needle.name.clone(),
                            file: name.clone(),
                            // In the content; nothing when it is in the name.
                            offset: at.checked_sub(name.len() + 1),
                        });
                    }
                }
            }
        }
        found
    }

    /// How many bytes the files have whose names end so.
    pub(crate) fn bytes_of(&self, end: &str) -> usize {
        let files = self.0.iter().filter(|(name, _)| name.ends_with(end));
        files.map(|(_, content)| content.len()).sum()
    }
}
