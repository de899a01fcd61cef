//! Where a deployed file stands within its app.

use std::{
    borrow::{Borrow, Cow},
    fmt,
    str::FromStr,
    sync::Arc,
};

use icu_normalizer::ComposingNormalizerBorrowed;

use super::error::{DeployError, PathFault};
use crate::documents::error::excerpt;
use crate::documents::limits::{MAX_PATH_BYTES, MAX_PATH_NAME_BYTES};

/// The path of a deployed file: names joined by `/`, none of them empty, `.` or `..`.
///
/// Any Unicode text will do for a name, but for control characters and `\`. A path is kept in
/// normalisation form C, so that what a file system has decomposed is found again under the name
/// that people type. Case counts, as it does in URLs. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppPath(Arc<str>);

impl AppPath {
    /// The path as text, in normalisation form C.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppPath {
    type Err = DeployError;

    fn from_str(text: &str) -> Result<Self, DeployError> {
        check(text)
            .map(|path| Self(path.into()))
            .map_err(|fault| DeployError::Path {
                path: excerpt(text),
                fault,
            })
    }
}

/// Orders as the text does.
impl Borrow<str> for AppPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The normal form of a path, checked.
fn check(text: &str) -> Result<Cow<'_, str>, PathFault> {
    if text.is_empty() {
        return Err(PathFault::Empty);
    }
    // Before it is normalised too, so that the work for it is bounded: no text is over three times
    // as long as its form C.
    if text.len() > 3 * MAX_PATH_BYTES {
        return Err(PathFault::TooLong);
    }
    let path = ComposingNormalizerBorrowed::new_nfc().normalize(text);
    if path.len() > MAX_PATH_BYTES {
        return Err(PathFault::TooLong);
    }
    if path.contains(|c: char| c.is_control() || c == '\\') {
        return Err(PathFault::Character);
    }
    for name in path.split('/') {
        match name {
            "" => return Err(PathFault::EmptyName),
            "." | ".." => return Err(PathFault::Dots),
            name if name.len() > MAX_PATH_NAME_BYTES => return Err(PathFault::LongName),
            _ => {}
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_names_of_any_script() {
        let longest = format!("{}/{}", vec!["n".repeat(255); 3].join("/"), "n".repeat(256));
        for path in [
            "index.html",
            "assets/js/app-3f2a.js",
            "größe/日本/😀.txt",
            "..a/.b/c..",
            "...",
            "a b/c:d?e#f%2e%2e",
            " ",
            &longest[..MAX_PATH_BYTES - 1],
            &"ab/".repeat(341)[..1022],
        ] {
            assert_eq!(path.parse::<AppPath>().unwrap().as_str(), path);
        }
    }

    #[test]
    fn rejects_what_is_no_path_within_an_app() {
        let name = "n".repeat(MAX_PATH_NAME_BYTES + 1);
        let long = "a/".repeat(MAX_PATH_BYTES);
        let longest = format!("{}a", &long[..MAX_PATH_BYTES]);
        for (text, fault) in [
            ("", PathFault::Empty),
            ("/", PathFault::EmptyName),
            ("/etc/passwd", PathFault::EmptyName),
            ("a/", PathFault::EmptyName),
            ("a//b", PathFault::EmptyName),
            (".", PathFault::Dots),
            ("..", PathFault::Dots),
            ("../a", PathFault::Dots),
            ("a/../b", PathFault::Dots),
            ("a/./b", PathFault::Dots),
            ("a/..", PathFault::Dots),
            ("..\\a", PathFault::Character),
            ("a\\b", PathFault::Character),
            ("a\0b", PathFault::Character),
            ("a\nb", PathFault::Character),
            ("a\u{7f}b", PathFault::Character),
            ("a\u{85}b", PathFault::Character),
            (&name, PathFault::LongName),
            (&longest, PathFault::TooLong),
            (&long, PathFault::TooLong),
        ] {
            let Err(DeployError::Path { fault: found, .. }) = text.parse::<AppPath>() else {
                panic!("{text:?} is a path");
            };
            assert_eq!(found, fault, "{text:?}");
        }
    }

    #[test]
    fn decomposed_text_is_the_composed_path() {
        let composed: AppPath = "caf\u{e9}.html".parse().unwrap();
        let decomposed: AppPath = "cafe\u{301}.html".parse().unwrap();
        assert_eq!(decomposed, composed);
        assert_ne!(composed, "CAF\u{e9}.html".parse().unwrap());
        // Normalisation makes no dots and no slashes of what looks like them.
        for text in ["a/\u{2024}\u{2024}/b", "a\u{2215}b", "\u{ff0e}\u{ff0e}/b"] {
            assert_eq!(text.parse::<AppPath>().unwrap().as_str(), text);
        }
    }

    proptest! {
        #[test]
        fn a_path_never_leaves_its_root_and_is_its_own_normal_form(text in "[a./\\\\\u{0}\u{301}e\u{e9}]{0,12}") {
            if let Ok(path) = text.parse::<AppPath>() {
                prop_assert!(path.as_str().split('/').all(|name| !matches!(name, "" | "." | "..")));
                prop_assert_eq!(path.as_str().parse::<AppPath>(), Ok(path.clone()));
            }
        }
    }
}
