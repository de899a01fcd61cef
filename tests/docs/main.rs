//! The documents held to the source: tests that they name exist, links and paths in them lead
//! somewhere.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads the documents and the source"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of the repository whose paths the documents name.
const FOLDERS: [&str; 10] = [
    "benches/",
    "docs/",
    "fuzz/",
    "keyproviders/",
    "manifests/",
    "scripts/",
    "sealing/",
    "src/",
    "tests/",
    ".ci/",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below `path` with this ending; `path` itself where it is one.
fn files(path: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![path.to_owned()];
    while let Some(next) = left.pop() {
        if next.is_file() {
            found.extend(
                next.extension()
                    .is_some_and(|is| is == ending)
                    .then_some(next),
            );
        } else if let Ok(entries) = fs::read_dir(&next) {
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
    }
    found.sort();
    found
}

/// The documents: those at the root of the repository, and the manual.
fn documents() -> Vec<PathBuf> {
    let mut all = files(&root().join("docs"), "md");
    all.extend(["README.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root().join(name)));
    assert!(all.len() > 20, "{all:?}");
    all
}

/// The names of the tests in a file of the source.
fn tests_in(source: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        let function = line.strip_prefix("async ").unwrap_or(line);
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = function.strip_prefix("fn ").filter(|_| is_test) {
            let _new = names.insert(name.split(['(', '<']).next().unwrap_or(name));
            is_test = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            is_test = false;
        }
    }
    names
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The first cell of each row of the table under `heading`.
fn first_column<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
    let (_, section) = document
        .split_once(heading)
        .unwrap_or_else(|| panic!("no {heading}"));
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with("| ---"));
    rows.skip(1)
        .take_while(|line| line.starts_with("| "))
        .map(|row| row[2..].split(" | ").next().unwrap_or(row))
        .collect()
}

#[test]
fn every_test_that_a_document_names_exists() {
    let mut missing = Vec::new();
    let mut named = 0;
    for document in documents() {
        let text = read(&document);
        for (place, name) in quoted(&text).filter_map(|quote| quote.split_once("::")) {
            let is_place = FOLDERS
                .iter()
                .any(|folder| format!("{place}/").starts_with(folder));
            if !is_place || name == "name" {
                continue;
            }
            named += 1;
            let sources = files(&root().join(place), "rs");
            if !sources
                .iter()
                .any(|file| tests_in(&read(file)).contains(name))
            {
                missing.push(format!("{}: {place}::{name}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named > 100, "only {named}");
}

#[test]
fn every_threat_has_its_tests() {
    let claims = read(&root().join("docs/claims.md"));
    let security = read(&root().join("SECURITY.md"));
    let proven = first_column(&claims, "\n## Threats\n");
    let threats = first_column(&security, "\n## Threats and what answers them\n");
    assert!(threats.len() > 30, "{threats:?}");
    assert_eq!(proven, threats);
    for row in claims
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("---"))
    {
        let is_head = row.ends_with("| tests |");
        assert!(is_head || row.contains("::"), "no test: {row}");
    }
}

#[test]
fn every_path_that_a_document_names_exists() {
    let mut missing = Vec::new();
    // Decisions and changes name what was there in their time.
    let current = |document: &PathBuf| {
        !document.ends_with("CHANGELOG.md") && !document.starts_with(root().join("docs/decisions"))
    };
    for document in documents().into_iter().filter(current) {
        let text = read(&document);
        for quote in quoted(&text) {
            let path = quote.split(" ").next().unwrap_or(quote);
            let path = path.split("::").next().unwrap_or(path);
            let is_path = FOLDERS.iter().any(|folder| path.starts_with(folder))
                && path
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
            if is_path && !root().join(path).exists() {
                missing.push(format!("{}: {path}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = read(&document);
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                document.clone()
            } else {
                document.parent().expect("a directory").join(path)
            };
            let is_there =
                target.exists() && (anchor.is_empty() || anchors(&read(&target)).contains(anchor));
            if !is_there {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// rustfmt wraps comments in its nightly version only: `cargo +nightly fmt -- --config
/// wrap_comments=true,comment_width=100`, and then `cargo fmt`. Rows of tables, drawings and what
/// stands between ``` cannot wrap.
#[test]
fn comments_of_the_source_are_within_a_hundred_columns() {
    let places = FOLDERS.into_iter().chain(["sealing/"]);
    let sources: Vec<_> = places
        .flat_map(|folder| files(&root().join(folder), "rs"))
        .filter(|path| !path.components().any(|part| part.as_os_str() == "target"))
        .collect();
    assert!(sources.len() > 300, "{sources:?}");
    let mut wide = Vec::new();
    for path in sources {
        let mut is_block = false;
        for (number, line) in (1..).zip(read(&path).lines()) {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                is_block = false;
                continue;
            };
            let text = comment.trim_start_matches(['/', '!', ' ']);
            is_block ^= text.starts_with("```");
            let wraps = !is_block && !text.starts_with('|') && !text.contains("://");
            if wraps && line.chars().count() > 100 {
                wide.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}
