//! Generations of what is deployed, and the contents of their files.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    columns::{CONTENT_HASH, CRON_LIST, FILE_PATH, GENERATION_NAME, PIECE, SCHEMA_LIST},
    engine::{Engine, Malformed, Row, Value, values},
    held::Table,
    reader::Reader,
    space::Space,
    transaction::RelationalTransaction,
};
use crate::documents::deploy::{
    AppFile, AppPath, Content, ContentHash, Deploy, Generation, Resources,
};
use crate::tenants::StoreError;
use crate::tenants::backend::{DeployRows, DeployWrites};

impl<E: Engine> DeployRows for Reader<E> {
    fn active_generation(&mut self) -> Result<Option<i64>, StoreError> {
        let row = self.ask_one("SELECT generation FROM @active", Vec::new())?;
        let active = row.map(|row| row.integer(0)).transpose();
        self.sound(active)
    }

    fn generations(&mut self) -> Result<Vec<Generation>, StoreError> {
        let rows = self.ask(
            &format!("SELECT {GENERATION} FROM @generations ORDER BY generation DESC"),
            Vec::new(),
        )?;
        let space = &self.space;
        let generation = |mut row: Row| {
            let (rest, name) = (GenerationRow::read(&row)?, row.bytes(1)?);
            Ok(Generation {
                name: space.open_text(GENERATION_NAME, || rest.sealed_with(), name)?,
                generation: rest.generation,
                created_at: rest.created,
                schemas: rest.schemas,
                crons: rest.crons,
                files: rest.files,
                bytes: rest.total,
            })
        };
        self.sound(rows.into_iter().map(generation).collect())
    }

    fn resources(&mut self, generation: i64) -> Result<Option<Resources>, StoreError> {
        let row = self.ask_one(
            &format!(
                "SELECT {GENERATION}, schema_list, cron_list FROM @generations WHERE generation = ?"
            ),
            values![generation],
        )?;
        let space = &self.space;
        let resources = row.map(|mut row| {
            let rest = GenerationRow::read(&row)?;
            let mut open = |column, place| {
                let stored = row.bytes(place)?;
                space.open_text(column, || rest.sealed_with(), stored)
            };
            let (schemas, crons) = (open(SCHEMA_LIST, 7)?, open(CRON_LIST, 8)?);
            Resources::from_stored(&schemas, &crons).ok_or(Malformed::of("a generation"))
        });
        self.sound(resources.transpose())
    }

    fn files(&mut self, generation: i64) -> Result<Vec<(String, ContentHash)>, StoreError> {
        let rows = self.ask(
            "SELECT f.path, c.sha FROM @files f JOIN @contents c ON c.number = f.content WHERE f.generation = ? ORDER BY f.path",
            values![generation],
        )?;
        let space = &self.space;
        let file = |mut row: Row| {
            let path = space.open_text(FILE_PATH, Vec::new, row.bytes(0)?)?;
            let sha = space.open_array(CONTENT_HASH, row.bytes(1)?)?;
            Ok((path, ContentHash::from_bytes(sha)))
        };
        let mut files: Vec<_> = self.sound(rows.into_iter().map(file).collect())?;
        // Sealed paths are in no order.
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(files)
    }

    fn app_file(&mut self, path: &AppPath) -> Result<Option<AppFile>, StoreError> {
        let row = self.ask_one(
            "SELECT c.sha, c.size FROM @active a JOIN @files f ON f.generation = a.generation
             JOIN @contents c ON c.number = f.content WHERE f.path = ?",
            values![self.space.findable(FILE_PATH, path.as_str().as_bytes())],
        )?;
        let space = &self.space;
        let file = row.map(|mut row| {
            Ok(AppFile {
                hash: ContentHash::from_bytes(space.open_array(CONTENT_HASH, row.bytes(0)?)?),
                size: u64::try_from(row.integer(1)?).map_err(|_| Malformed::of("a size"))?,
            })
        });
        self.sound(file.transpose())
    }

    fn app_content(&mut self, hash: ContentHash, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let piece = PIECE_BYTES as u64;
        let place = |byte: u64| i64::try_from(byte / piece).unwrap_or(i64::MAX);
        // One statement, and so one state.
        let rows = self.ask(
            "SELECT p.piece, p.place FROM @contents c JOIN @pieces p ON p.content = c.number
             WHERE c.sha = ? AND p.place >= ? AND p.place <= ? ORDER BY p.place",
            values![
                self.space.findable(CONTENT_HASH, hash.as_bytes()),
                place(range.start),
                place(range.end.saturating_sub(1))
            ],
        )?;
        let mut skip = (range.start % piece) as usize;
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        for mut row in rows {
            let place = self.sound(row.integer(1))?;
            let piece = self.sound(row.bytes(0))?;
            let sealed_with = || values![hash.as_bytes(), place];
            let piece = self.sound(self.space.open(PIECE, sealed_with, piece))?;
            let piece = piece.get(skip..).unwrap_or_default();
            let missing = length - bytes.len();
            bytes.extend_from_slice(&piece[..piece.len().min(missing)]);
            skip = 0;
        }
        Ok(bytes)
    }
}

impl<E: Engine> DeployWrites for RelationalTransaction<E> {
    fn store_generation(&mut self, deploy: &Deploy, created_ms: i64) -> Result<i64, StoreError> {
        let generation = self.last("SELECT coalesce(max(generation), 0) FROM @generations")? + 1;
        self.put_deploy(generation, deploy, created_ms)?;
        Ok(generation)
    }

    fn set_active_generation(&mut self, generation: i64) -> Result<(), StoreError> {
        self.put(Table::Active, values![1_i64], Some(values![generation]));
        Ok(())
    }

    fn old_generations(&mut self, kept: usize) -> Result<Vec<i64>, StoreError> {
        let rows = self.reader.ask(
            "SELECT generation FROM @generations ORDER BY generation DESC",
            Vec::new(),
        )?;
        let old = rows.iter().skip(kept).map(|row| row.integer(0));
        self.reader.sound(old.collect())
    }

    fn delete_generation(&mut self, generation: i64) -> Result<(), StoreError> {
        let rows = self.reader.ask(
            "SELECT f.path, c.number, c.sha, c.size, c.uses FROM @files f JOIN @contents c ON c.number = f.content
             WHERE f.generation = ?",
            values![generation],
        )?;
        let space = Arc::clone(&self.reader.space);
        let file = |mut row: Row| {
            let used = Used::stored(&space, &mut row, 2)?;
            Ok((row.bytes(0)?, row.integer(1)?, used))
        };
        let files: Result<Vec<(Vec<u8>, i64, Used)>, Malformed> =
            rows.into_iter().map(file).collect();
        let mut contents: BTreeMap<i64, Used> = BTreeMap::new();
        for (path, number, used) in self.reader.sound(files)? {
            self.put(Table::Files, values![generation, path], None);
            contents.entry(number).or_insert(used).uses -= 1;
        }
        for (number, used) in contents {
            if used.uses > 0 {
                let row = used.row(&space);
                self.put(Table::Contents, values![number], Some(row));
                continue;
            }
            self.put(Table::Contents, values![number], None);
            for place in 0..pieces(used.size) {
                self.put(Table::Pieces, values![number, place], None);
            }
        }
        self.put(Table::Generations, values![generation], None);
        Ok(())
    }
}

/// The columns that [`GenerationRow::read`] reads, the name among them.
const GENERATION: &str = r#"generation, name, created, "schemas", crons, files, total"#;

/// What of a generation is in the clear.
#[derive(Debug, Clone, Copy)]
struct GenerationRow {
    generation: i64,
    created: i64,
    schemas: i64,
    crons: i64,
    files: i64,
    total: i64,
}

impl GenerationRow {
    fn read(row: &Row) -> Result<Self, Malformed> {
        Ok(Self {
            generation: row.integer(0)?,
            created: row.integer(2)?,
            schemas: row.integer(3)?,
            crons: row.integer(4)?,
            files: row.integer(5)?,
            total: row.integer(6)?,
        })
    }

    /// The rest of its row, to which what is sealed of it is bound.
    fn sealed_with(&self) -> Vec<Value> {
        values![
            self.generation,
            self.created,
            self.schemas,
            self.crons,
            self.files,
            self.total
        ]
    }
}

/// A content, and in how many files it is.
#[derive(Debug, Clone, Copy)]
struct Used {
    sha: [u8; 32],
    size: i64,
    uses: i64,
}

impl Used {
    fn stored<E>(space: &Space<E>, row: &mut Row, first: usize) -> Result<Self, Malformed> {
        Ok(Self {
            sha: space.open_array(CONTENT_HASH, row.bytes(first)?)?,
            size: row.integer(first + 1)?,
            uses: row.integer(first + 2)?,
        })
    }

    fn row<E>(self, space: &Space<E>) -> Vec<Value> {
        let sha = space.findable(CONTENT_HASH, &self.sha);
        values![sha, self.size, self.uses]
    }
}

impl<E: Engine> RelationalTransaction<E> {
    /// Stores a deploy as the generation of this number.
    pub(super) fn put_deploy(
        &mut self,
        generation: i64,
        deploy: &Deploy,
        created_ms: i64,
    ) -> Result<(), StoreError> {
        let Deploy {
            name,
            resources,
            files,
            ..
        } = deploy;
        let total: usize = files.values().map(|file| file.bytes().len()).sum();
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let rest = GenerationRow {
            generation,
            created: created_ms,
            schemas: count(resources.schemas.len()),
            crons: count(resources.crons.len()),
            files: count(files.len()),
            total: count(total),
        };
        let (space, sealed_with) = (&self.reader.space, || rest.sealed_with());
        let row = values![
            space.seal(GENERATION_NAME, sealed_with, name.as_str())?,
            rest.created,
            rest.schemas,
            rest.crons,
            rest.files,
            rest.total,
            space.seal(SCHEMA_LIST, sealed_with, resources.schemas_json())?,
            space.seal(CRON_LIST, sealed_with, resources.crons_json())?
        ];
        self.put_new(Table::Generations, values![generation], row);
        self.store_files(generation, files)
    }

    fn last(&mut self, sql: &str) -> Result<i64, StoreError> {
        self.reader.ask_integer(sql, Vec::new())
    }

    /// Stores the files of a generation: equal contents once.
    fn store_files(
        &mut self,
        generation: i64,
        files: &BTreeMap<AppPath, Content>,
    ) -> Result<(), StoreError> {
        let mut last = self.last("SELECT coalesce(max(number), 0) FROM @contents")?;
        let mut contents: BTreeMap<[u8; 32], (i64, Used)> = BTreeMap::new();
        let space = Arc::clone(&self.reader.space);
        let hashes: Vec<Value> = files
            .values()
            .map(|content| space.findable(CONTENT_HASH, content.hash().as_bytes()))
            .map(Value::from)
            .collect();
        for hashes in hashes.chunks(HASHES_AT_ONCE) {
            let sql = format!(
                "SELECT number, sha, size, uses FROM @contents WHERE sha IN ({})",
                vec!["?"; hashes.len()].join(", ")
            );
            for mut row in self.reader.ask(&sql, hashes.to_vec())? {
                let used = Used::stored(&space, &mut row, 1);
                let (used, number) = (self.reader.sound(used)?, self.reader.sound(row.integer(0))?);
                let _new = contents.insert(used.sha, (number, used));
            }
        }
        for (path, content) in files {
            let sha = *content.hash().as_bytes();
            let number = match contents.get_mut(&sha) {
                Some((number, used)) => {
                    used.uses += 1;
                    *number
                }
                None => {
                    last += 1;
                    for (place, piece) in content.bytes().chunks(PIECE_BYTES).enumerate() {
                        let piece = space.seal(PIECE, || values![&sha, place], piece)?;
                        self.put_new(Table::Pieces, values![last, place], values![piece]);
                    }
                    let used = Used {
                        sha,
                        size: content.bytes().len() as i64,
                        uses: 1,
                    };
                    let _new = contents.insert(sha, (last, used));
                    last
                }
            };
            let stored = space.findable(FILE_PATH, path.as_str().as_bytes());
            let key = values![generation, stored];
            self.put_new(Table::Files, key, values![number]);
        }
        for (number, used) in contents.into_values() {
            let row = used.row(&space);
            self.put(Table::Contents, values![number], Some(row));
        }
        Ok(())
    }
}

/// How many pieces a content of so many bytes has.
fn pieces(size: i64) -> i64 {
    (size + PIECE_BYTES as i64 - 1) / PIECE_BYTES as i64
}

/// Bytes of a piece: 64 KiB. The last one of a content may have fewer.
const PIECE_BYTES: usize = 64 << 10;
/// Contents that one statement names.
const HASHES_AT_ONCE: usize = 10_000;
