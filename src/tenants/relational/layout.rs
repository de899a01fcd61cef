//! The tables, version 3.
//!
//! ```text
//! In the space of the provider:
//! layout     one row: the version of all of this, how often the tables below but the last were
//!            changed, and since which of these changes all that is gone can be told
//! tenants    which tenants there are, how far their creation or deletion has come, which of its name
//!            each is, whether it is locked, and its manifest if its values are sealed
//! keys       access keys, the hashes of their secrets
//! due        when a tenant's first job or cron is due
//!
//! In the space of each tenant:
//! head       one row, which each transaction that writes locks first: the number of the last write,
//!            how many transactions there were, how often tables or indexes changed, which tenant of its
//!            name this is, the key of its cursors
//! commits    an id for each of the last transactions: whether one came to be that nobody was told of
//! tables     the numbers of tables of documents
//! documents  the documents: seq is the number of the write that inserted one, fields the JSON text
//! indexes    the indexes of tables
//! entries    their entries: the key, as keys.rs makes it, and the seq of the document
//! uniques    the entries of unique indexes that no other document may have
//! journal, schemas, jobs, job_history, crons, answers, answers_of, generations, active, files,
//! contents, pieces: as src/tenants/sqlite has them
//! ```
//!
//! No table is made or changed after a tenant's creation: not every engine undoes that. Names and
//! texts are bytes, in the order of their bytes. What of them is sealed where a tenant is, says
//! `columns.rs`. A column whose name is a word of some engine is
//! quoted with `"`.

/// The version of the layout. Version 1 knew one server alone, version 2 no sealed tenants; neither
/// was released.
pub(super) const VERSION: i64 = 3;

/// The tables of the provider.
pub(super) const PROVIDER: &[&str] = &[
    "CREATE TABLE @layout (one BIGINT PRIMARY KEY, version BIGINT NOT NULL, number BIGINT NOT NULL, floor BIGINT NOT NULL)",
    "CREATE TABLE @tenants (name {key} PRIMARY KEY, state BIGINT NOT NULL, locked BIGINT NOT NULL, incarnation {bytes}, manifest {bytes}, changed BIGINT NOT NULL)",
    "CREATE INDEX tenants_by_change ON @tenants (changed)",
    "CREATE TABLE @keys (id {key} PRIMARY KEY, tenant {key} NOT NULL, record {bytes} NOT NULL, changed BIGINT NOT NULL)",
    "CREATE INDEX keys_by_tenant ON @keys (tenant)",
    "CREATE INDEX keys_by_change ON @keys (changed)",
    "CREATE TABLE @due (name {key} PRIMARY KEY, at BIGINT NOT NULL)",
    "CREATE INDEX due_by_time ON @due (at)",
];

/// The tables of a tenant.
pub(super) const TENANT: &[&str] = &[
    "CREATE TABLE @head (one BIGINT PRIMARY KEY, seq BIGINT NOT NULL, commits BIGINT NOT NULL, structure BIGINT NOT NULL,
        incarnation {key} NOT NULL, cursor_key {key} NOT NULL)",
    "CREATE TABLE @commits (number BIGINT PRIMARY KEY, id {key} NOT NULL)",
    "CREATE TABLE @tables (number BIGINT PRIMARY KEY, name {key} NOT NULL UNIQUE)",
    "CREATE TABLE @documents (tbl BIGINT NOT NULL, seq BIGINT NOT NULL, id {key} NOT NULL, version BIGINT NOT NULL,
        created BIGINT NOT NULL, updated BIGINT NOT NULL, fields {bytes} NOT NULL, PRIMARY KEY (tbl, seq), UNIQUE (tbl, id))",
    "CREATE TABLE @indexes (slot BIGINT PRIMARY KEY, tbl BIGINT NOT NULL, name {bytes} NOT NULL, definition {bytes} NOT NULL)",
    "CREATE TABLE @entries (slot BIGINT NOT NULL, entry {key} NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY (slot, entry, seq))",
    "CREATE TABLE @uniques (slot BIGINT NOT NULL, entry {key} NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY (slot, entry))",
    "CREATE TABLE @journal (sequence BIGINT PRIMARY KEY, kind BIGINT NOT NULL, tbl BIGINT NOT NULL, id {key} NOT NULL, at_ms BIGINT NOT NULL,
        mac {bytes} NOT NULL)",
    "CREATE TABLE @schemas (tbl BIGINT PRIMARY KEY, definition {bytes} NOT NULL)",
    "CREATE TABLE @jobs (id {key} PRIMARY KEY, due BIGINT NOT NULL, mutation {bytes} NOT NULL)",
    "CREATE INDEX jobs_by_due ON @jobs (due, id)",
    "CREATE TABLE @job_history (number BIGINT PRIMARY KEY, id {key} NOT NULL UNIQUE, due BIGINT NOT NULL, finished BIGINT NOT NULL,
        failure {bytes}, mutation {bytes} NOT NULL)",
    "CREATE TABLE @crons (name {key} PRIMARY KEY, origin BIGINT NOT NULL, due BIGINT NOT NULL, reckoned BIGINT NOT NULL,
        last_due BIGINT, last_finished BIGINT, last_error {bytes}, schedule {bytes} NOT NULL, mutation {bytes} NOT NULL)",
    "CREATE TABLE @answers (number BIGINT PRIMARY KEY, name {key} NOT NULL UNIQUE, request {bytes} NOT NULL, at_ms BIGINT NOT NULL,
        total BIGINT NOT NULL, answer {bytes} NOT NULL, credential {bytes} NOT NULL)",
    "CREATE TABLE @answers_of (credential {key} PRIMARY KEY, answers BIGINT NOT NULL, total BIGINT NOT NULL)",
    "CREATE TABLE @generations (generation BIGINT PRIMARY KEY, name {bytes} NOT NULL, created BIGINT NOT NULL, \"schemas\" BIGINT NOT NULL,
        crons BIGINT NOT NULL, files BIGINT NOT NULL, total BIGINT NOT NULL, schema_list {bytes} NOT NULL, cron_list {bytes} NOT NULL)",
    "CREATE TABLE @active (one BIGINT PRIMARY KEY, generation BIGINT NOT NULL)",
    "CREATE TABLE @files (generation BIGINT NOT NULL, path {key} NOT NULL, content BIGINT NOT NULL, PRIMARY KEY (generation, path))",
    "CREATE TABLE @contents (number BIGINT PRIMARY KEY, sha {key} NOT NULL UNIQUE, size BIGINT NOT NULL, uses BIGINT NOT NULL)",
    "CREATE TABLE @pieces (content BIGINT NOT NULL, place BIGINT NOT NULL, piece {bytes} NOT NULL, PRIMARY KEY (content, place))",
];
