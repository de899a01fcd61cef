//! `migrate` and `export` of every kind of database that SQLite makes and keeps, whatever its
//! application brings along.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nimbus_test_support::Machine;

use super::{as_str, deployment, encryption, health, status};

/// Runs Python with `PRELUDE` before the text.
fn python(text: &str, arguments: &[&Path]) {
    let made = Command::new("python3")
        .args(["-c", &format!("{PRELUDE}{text}")])
        .args(arguments)
        .output()
        .expect("python runs");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
}

/// What the application of these databases has, and a comparison of all that two databases hold and
/// say of themselves.
const PRELUDE: &str = r#"
import os, random, sqlite3, sys, time
def connect(path):
    db = sqlite3.connect(path, isolation_level=None)
    # From the end of the word, so that no built-in collation has this order.
    db.create_collation('BACKWARDS', lambda a, b: (a[::-1] > b[::-1]) - (a[::-1] < b[::-1]))
    db.create_function('shout', 1, lambda text: str(text).upper() + '!', deterministic=True)
    return db
def everything(path):
    db = connect(path)
    yield [db.execute('PRAGMA ' + p).fetchall() for p in ('user_version', 'application_id', 'encoding')]
    schema = db.execute('SELECT rowid, type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid').fetchall()
    yield schema
    for _, kind, name, _, sql in schema:
        if kind == 'table' and not (sql or '').upper().startswith('CREATE VIRTUAL'):
            name = name.replace('"', '""')
            try:
                yield name, db.execute(f'SELECT rowid, * FROM "{name}" ORDER BY rowid').fetchall()
            except sqlite3.OperationalError:
                yield name, db.execute(f'SELECT * FROM "{name}"').fetchall()
    try:
        yield db.execute('PRAGMA integrity_check').fetchall()
    except sqlite3.OperationalError as error:
        yield str(error)
def compare(a, b):
    for x, y in zip(everything(a), everything(b), strict=True):
        assert x == y, (x, y)
"#;

/// Migrates `name` as a tenant of its own, checks it, exports it again, and compares the two.
fn there_and_back(machine: &Machine, name: &str) {
    let directory = machine.path(&format!("of-{name}"));
    let target = directory.join("odd.sqlite3");
    let source = format!("{name}.db");
    let _ = encryption(
        machine,
        &[
            "migrate",
            "--provider",
            "sqlite",
            "--tenant-id",
            "odd",
            "--source",
            &source,
            "--target",
            as_str(&target),
        ],
    )
    .expect(0, &["as db:sqlite:tenant:odd:odd.sqlite3"]);
    let look = ["--verify", "pages", "--data-dir", as_str(&directory)];
    assert_eq!(
        health(&status(machine, &look, 0), "odd.sqlite3"),
        "ok",
        "{name}"
    );
    let back = format!("{name}.back.db");
    let _ = encryption(
        machine,
        &[
            "export",
            "--provider",
            "sqlite",
            "--tenant-id",
            "odd",
            "--source",
            as_str(&target),
            "--target",
            &back,
        ],
    )
    .expect(0, &[]);
    python(
        "compare(*sys.argv[1:])",
        &[&machine.path(&source), &machine.path(&back)],
    );
    // Nor does a new data key mind.
    let _ = encryption(
        machine,
        &[
            "rotate-dek",
            "--tenant-id",
            "odd",
            "--path",
            as_str(&target),
        ],
    )
    .expect(0, &[]);
    // No server has run here: no control file is missed.
    assert_eq!(
        health(&status(machine, &look, 0), "odd.sqlite3"),
        "ok",
        "{name}"
    );
}

#[test]
fn takes_every_page_size_encoding_and_vacuum_mode_with_rows_of_every_length() {
    let machine = deployment(&[], &[]);
    let make = r#"
for n, page in enumerate([512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]):
    random.seed(n)
    db = connect(f'{sys.argv[1]}/pages{page}.db')
    db.execute(f'PRAGMA page_size = {page}')
    db.execute(f'PRAGMA auto_vacuum = {n % 3}')
    db.execute("PRAGMA encoding = '" + ['UTF-8', 'UTF-16le', 'UTF-16be'][n % 3] + "'")
    if n % 2:
        db.execute('PRAGMA journal_mode = WAL')
    db.execute('BEGIN')
    db.execute('CREATE TABLE rows (id INTEGER PRIMARY KEY, a TEXT, b BLOB)')
    db.execute('CREATE TABLE plain (a, b)')
    db.execute('CREATE TABLE words (word TEXT PRIMARY KEY, rest BLOB) WITHOUT ROWID')
    db.execute('CREATE TABLE vacant (a UNIQUE)')
    db.execute('CREATE INDEX by_a ON rows (a, b)')
    db.execute('CREATE INDEX by_b ON rows (b DESC) WHERE id % 2')
    # A schema of many pages, with a definition that fills one by itself.
    for t in range(120):
        db.execute(f'CREATE TABLE t{t} (x CHECK (x != "' + 'y' * random.choice([0, 300, 3860, 3900, 9000]) + '"))')
        db.execute(f'INSERT INTO t{t} VALUES ({t})')
    for i in range(3000):
        size = random.choice([0, 1, 7, 40, 120, 475, 480, 900, 985, 1000, 3900, 3985, 4016, 4100, 9000])
        size = size if i % 7 == 0 else size % 130
        id = random.choice([i, i, i, -i, i << 33, (1 << 63) - 1 - i])
        db.execute('INSERT OR IGNORE INTO rows VALUES (?, ?, ?)', (id, f'{i % 97}' * (size // 3), random.randbytes(size)))
        db.execute('INSERT INTO plain VALUES (?, ?)', (i, None))
        db.execute('INSERT OR IGNORE INTO words VALUES (?, ?)', (f'{random.random()}' * (1 + size // 20), random.randbytes(size)))
    # Pages that are free, and leaves that are not full.
    db.execute('DELETE FROM plain WHERE a % 3 = 1')
    db.execute('DELETE FROM rows WHERE id % 5 = 2')
    db.execute(f'INSERT INTO plain VALUES (1, zeroblob(3000000))')
    db.execute('PRAGMA user_version = 77')
    db.execute('PRAGMA application_id = 4711')
    db.execute('COMMIT')
    db.execute('ANALYZE')
os._exit(0)
"#;
    python(make, &[machine.root()]);
    for page in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        there_and_back(&machine, &format!("pages{page}"));
    }
}

#[test]
fn takes_what_only_its_application_understands() {
    let machine = deployment(&[], &[]);
    let make = r#"
def make(name, *statements):
    db = connect(f'{sys.argv[1]}/{name}.db')
    for statement in statements:
        db.execute(statement)
words = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) INSERT INTO t SELECT i, printf('%x word %d', i * 7919 % 4001, i) FROM n"
make('collation', 'CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT COLLATE BACKWARDS)', 'CREATE UNIQUE INDEX by_word ON t (word)',
     'CREATE TABLE w (word TEXT COLLATE BACKWARDS PRIMARY KEY) WITHOUT ROWID', words, 'INSERT INTO w SELECT word FROM t')
make('function', 'CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT CHECK (shout(word) != word))', 'CREATE INDEX loud ON t (shout(word))',
     'CREATE VIEW v AS SELECT shout(word) FROM t', words)
make('generated', 'CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT, loud TEXT AS (shout(word)) STORED, quiet AS (lower(word)))',
     words.replace('INTO t', 'INTO t (id, word)'))
make('tokenizer', 'CREATE TABLE t (id INTEGER PRIMARY KEY, word)', words, 'CREATE VIRTUAL TABLE f USING fts5(body, tokenize=unicode61)',
     "INSERT INTO f SELECT word FROM t", 'PRAGMA writable_schema = ON',
     "UPDATE sqlite_schema SET sql = replace(sql, 'unicode61', 'icu_of_ours') WHERE name = 'f'")
make('module', 'CREATE TABLE t (id INTEGER PRIMARY KEY, word)', words, 'PRAGMA writable_schema = ON',
     "INSERT INTO sqlite_schema VALUES ('table', 'far', 'far', 0, 'CREATE VIRTUAL TABLE far USING module_of_ours(x, y)')")
make('rules', 'CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT)', words, 'UPDATE t SET word = NULL WHERE id % 1000 = 1',
     'CREATE TABLE s (n INT) STRICT', 'CREATE TABLE o (n)', "INSERT INTO o VALUES ('no number')", 'PRAGMA writable_schema = ON',
     "UPDATE sqlite_schema SET sql = 'CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT NOT NULL CHECK (length(word) < 3))' WHERE name = 't'",
     "UPDATE sqlite_schema SET sql = 'CREATE TABLE o (n INT) STRICT' WHERE name = 'o'")
make('added', 'CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT)', words, "ALTER TABLE t ADD COLUMN late DEFAULT 'later'",
     'CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT)', 'INSERT INTO a VALUES (99)', 'DELETE FROM a', 'ALTER TABLE t DROP COLUMN word',
     'PRAGMA writable_schema = ON', "UPDATE sqlite_schema SET sql = 'CREATE TABLE t(id INTEGER PRIMARY KEY,late,further)' WHERE name = 't'")
make('empty')
make('vacant', 'PRAGMA user_version = 5', 'CREATE TABLE t (a)', 'DROP TABLE t')
# In the file nothing but a header that says UTF-8; all that it is lies in the WAL.
db = connect(f'{sys.argv[1]}/wal.db')
for statement in ("PRAGMA journal_mode = WAL", "PRAGMA encoding = 'UTF-16be'", 'PRAGMA wal_autocheckpoint = 0',
                  'CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT)', 'CREATE INDEX i ON t (word)', words):
    db.execute(statement)
os._exit(0)
"#;
    python(make, &[machine.root()]);
    assert!(machine.path("wal.db-wal").exists());
    for name in [
        "collation",
        "function",
        "generated",
        "tokenizer",
        "module",
        "rules",
        "added",
        "vacant",
        "wal",
    ] {
        there_and_back(&machine, name);
    }
    // What was never written to is no database yet.
    let _ = encryption(&machine, &arguments("empty.db")).expect(1, &["empty.db has 0 bytes"]);
}

fn arguments(source: &str) -> [&str; 7] {
    [
        "migrate",
        "--provider",
        "sqlite",
        "--tenant-id",
        "odd",
        "--source",
        source,
    ]
}

#[test]
fn names_what_is_wrong_with_a_source_that_is_damaged_or_says_two_things() {
    let machine = deployment(&[], &[]);
    let make = r#"
def make(name, *statements):
    db = connect(f'{sys.argv[1]}/{name}.db')
    for statement in statements:
        db.execute(statement)
    db.close()
rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) INSERT INTO t SELECT i, printf('word %d', i) FROM n"
table = 'CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT)'
make('index', table, 'CREATE INDEX i ON t (word)', rows, 'PRAGMA writable_schema = ON',
     "UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t (word DESC)' WHERE name = 'i'")
make('schema', table, rows, 'PRAGMA writable_schema = ON', "UPDATE sqlite_schema SET sql = 'CREATE TABLE t (no table'")
make('page', table, rows)
with open(f'{sys.argv[1]}/page.db', 'r+b') as f:
    f.seek(5 * 4096)
    f.write(b'\xff' * 4096)
make('circle', table, rows)
with open(f'{sys.argv[1]}/circle.db', 'r+b') as f:
    f.seek(4096 + 8)
    f.write((2).to_bytes(4, 'big'))
"#;
    python(make, &[machine.root()]);
    for (name, words) in [
        (
            "index",
            &[
                "own check of index.db finds",
                "REINDEX",
                "--skip-validation",
            ][..],
        ),
        (
            "schema",
            &[
                "SQLite cannot read schema.db (malformed database schema",
                ".recover",
            ],
        ),
        ("page", &["page 6 of page.db is damaged", ".recover"]),
        ("circle", &["of circle.db is damaged", ".recover"]),
    ] {
        let source = format!("{name}.db");
        let before = fs::read(machine.path(&source)).expect("the source");
        let refused = encryption(&machine, &arguments(&source));
        let said = refused.expect(1, words).err();
        assert!(!said.contains("report"), "{said}");
        assert_eq!(fs::read(machine.path(&source)).expect("the source"), before);
        assert!(!machine.path(&format!("{source}.encrypted")).exists());
        assert!(
            !machine
                .path(&format!("{source}.encrypted.nimbus-enc"))
                .exists()
        );
    }
    fs::rename(machine.path("index.db"), machine.path("odd.sqlite3")).expect("the served name");
    let as_it_is = [
        &arguments("odd.sqlite3")[..],
        &["--in-place", "--skip-validation"],
    ]
    .concat();
    let _ = encryption(&machine, &as_it_is).expect(0, &["is encrypted"]);
}

#[test]
fn copies_one_snapshot_of_a_source_that_is_written_all_the_while() {
    let machine = deployment(&[], &[]);
    for mode in ["wal", "delete"] {
        let source = format!("{mode}.db");
        let write = r#"
db = connect(sys.argv[1])
db.execute('PRAGMA busy_timeout = 60000')
db.execute('PRAGMA journal_mode = ' + sys.argv[2])
db.execute('PRAGMA wal_autocheckpoint = 50')
db.execute('CREATE TABLE a (n, filler)')
db.execute('CREATE TABLE b (n INTEGER PRIMARY KEY)')
for n in range(1 << 30):
    db.execute('BEGIN IMMEDIATE')
    db.execute('INSERT INTO a VALUES (?, zeroblob(2000))', (n,))
    db.execute('INSERT INTO b VALUES (?)', (n,))
    db.execute('DELETE FROM a WHERE n = ?', (n - 700,))
    db.execute('DELETE FROM b WHERE n = ?', (n - 700,))
    db.execute('COMMIT')
    # Without a WAL nobody reads while somebody writes.
    time.sleep(0.01 if sys.argv[2] == 'delete' and n > 1000 else 0)
    if n == 1000:
        print('ready', flush=True)
"#;
        let mut writer = Command::new("python3")
            .args(["-c", &format!("{PRELUDE}{write}")])
            .arg(machine.path(&source))
            .arg(mode)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs");
        let mut said = writer.stdout.take().expect("its output");
        let mut ready = [0; 6];
        said.read_exact(&mut ready).expect("it writes");
        for round in 0..3 {
            let target = machine.path(&format!("{mode}-{round}.sqlite3"));
            let mut migrate = arguments(&source).to_vec();
            migrate.extend(["--target", as_str(&target)]);
            let _ = encryption(&machine, &migrate).expect(0, &["is encrypted"]);
            let back = machine.path(&format!("{mode}-{round}.back.db"));
            let _ = encryption(
                &machine,
                &[
                    "export",
                    "--provider",
                    "sqlite",
                    "--tenant-id",
                    "odd",
                    "--source",
                    as_str(&target),
                    "--target",
                    as_str(&back),
                ],
            )
            .expect(0, &[]);
            python(
                "
db = connect(sys.argv[1])
a, b = (db.execute(f'SELECT n FROM {t} ORDER BY n').fetchall() for t in 'ab')
assert a == b and len(a) == 700, (len(a), len(b))
assert db.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
",
                &[&back],
            );
        }
        writer.kill().expect("it ends");
        let _status = writer.wait().expect("it has ended");
    }
}
