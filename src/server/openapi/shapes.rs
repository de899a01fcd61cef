//! What JSON looks like in requests and answers, for the document alone: bodies are read by the types that check them, and answers are
//! written by those that have them. A generated client holds the running server to these.

#![expect(dead_code, reason = "shapes are described, never made")]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Schema,
    SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::documents::query::MAX_IN;
use crate::server::error::Code;

/// Text of a fixed form.
fn text(pattern: &str, description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
        .description(Some(description))
}

macro_rules! shape {
    ($(#[doc = $doc:literal])* $name:ident = $make:expr;) => {
        $(#[doc = $doc])*
        pub(in crate::server) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                RefOr::from($make)
            }
        }

        impl ToSchema for $name {}
    };
}

shape! {
    /// The id of a tenant.
    TenantId = text("^[a-z0-9][a-z0-9_-]{0,47}$", "The id of a tenant");
}
shape! {
    /// The name of a table.
    TableName = text("^[A-Za-z][A-Za-z0-9_-]{0,63}$", "The name of a table; case counts");
}
shape! {
    /// The id of a document.
    DocumentId = text(
        "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        "The id of a document: a UUID version 7 in lower case",
    );
}
shape! {
    /// The user's part of a document.
    Fields = fields("The fields of a document: any JSON, at most 1 MiB and 64 levels; no name begins with '_'");
}
shape! {
    /// A document as it is answered.
    Document = ObjectBuilder::new()
        .property("_id", DocumentId::schema())
        .required("_id")
        .property("_creationTime", milliseconds("When it was inserted"))
        .required("_creationTime")
        .property("_updateTime", milliseconds("When it was changed last"))
        .required("_updateTime")
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .description(Some("A document: its fields, and what the server keeps of it"));
}
shape! {
    /// What a field is compared with.
    Comparable = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([
            Type::Null, Type::Boolean, Type::Number, Type::String,
        ]))
        .description(Some("A value that a field is compared with"));
}
shape! {
    /// A field of a document.
    Field = text(
        "^(_id|_creationTime|_updateTime|[^_.\\x00][^.\\x00]*(\\.[^.\\x00]+)*)$",
        "A field: one of the server's, or the names on the way to it with dots between them; at most 1024 bytes and 64 names",
    );
}
shape! {
    /// One change of a batch.
    Mutation = OneOfBuilder::new()
        .item(mutation("insert", &["fields"], &["id"]))
        .item(mutation("update", &["id", "patch"], &[]))
        .item(mutation("delete", &["id"], &[]))
        .description(Some("One change to one document"));
}
shape! {
    /// One condition of a query.
    Filter = OneOfBuilder::new()
        .item(filter(&["eq", "neq", "gt", "gte", "lt", "lte"], Comparable::schema()))
        .item(filter(
            &["in"],
            ArrayBuilder::new()
                .items(Comparable::schema())
                .max_items(Some(MAX_IN))
                .into(),
        ))
        .item(filter(&["exists"], Object::with_type(Type::Boolean).into()))
        .description(Some("What must be true of a field; docs/queries.md defines how values compare"));
}
shape! {
    /// The id of a job.
    JobId = text(
        "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        "The id of a job: a UUID version 7 in lower case",
    );
}
shape! {
    /// The name of a cron.
    CronName = text("^[A-Za-z][A-Za-z0-9_-]{0,63}$", "The name of a cron");
}
shape! {
    /// When a cron runs.
    Schedule = OneOfBuilder::new()
        .item(
            closed()
                .property("type", word(&["interval"]))
                .required("type")
                .property("seconds", ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)))
                .required("seconds"),
        )
        .item(
            closed()
                .property("type", word(&["cron"]))
                .required("type")
                .property("expression", Object::with_type(Type::String))
                .required("expression")
                .property("timezone", Object::with_type(Type::String)),
        )
        .description(Some("When a cron runs"));
}
shape! {
    /// The code of an error.
    ErrorCode = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(codes()))
        .description(Some("What happened"));
}
shape! {
    /// Any JSON object.
    AnyObject = ObjectBuilder::new()
        .additional_properties(Some(AdditionalProperties::FreeForm(true)));
}
shape! {
    /// Anything at all, or nothing.
    Anything = AnyOfBuilder::new()
        .item(AnyObject::schema())
        .item(Object::with_type(Type::Null));
}

/// The codes as they stand in the envelope, each once.
fn codes() -> Vec<Value> {
    let mut codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    codes.into_iter().map(Value::from).collect()
}

fn fields(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .property_names(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .pattern(Some("^(?!_)")),
        ))
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .description(Some(description))
}

fn milliseconds(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some(format!(
            "{description}, in milliseconds since the Unix epoch"
        )))
}

/// One kind of mutation: its table, the members it must and may have, and no others.
fn mutation(kind: &str, must: &[&str], may: &[&str]) -> ObjectBuilder {
    let mut object = closed()
        .property("type", word(&[kind]))
        .required("type")
        .property("table", TableName::schema())
        .required("table");
    for member in must {
        let schema = match *member {
            "id" => DocumentId::schema(),
            _ => Fields::schema(),
        };
        object = object.property(*member, schema).required(*member);
    }
    for member in may {
        // Null is as good as nothing.
        let choice = OneOfBuilder::new()
            .item(Object::with_type(Type::Null))
            .item(DocumentId::schema());
        object = object.property(*member, choice);
    }
    object
}

fn filter(operators: &[&str], value: RefOr<Schema>) -> ObjectBuilder {
    closed()
        .property("field", Field::schema())
        .required("field")
        .property("op", word(operators))
        .required("op")
        .property("value", value)
        .required("value")
}

fn closed() -> ObjectBuilder {
    ObjectBuilder::new().additional_properties(Some(AdditionalProperties::FreeForm(false)))
}

fn word(words: &[&str]) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(words.iter().copied()))
}

/// A reference to a shape among the components.
pub(super) fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}

/// Exactly `{"ok":true}`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Healthy {
    ok: bool,
}

/// Whether everything that must work does.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Readiness {
    ready: bool,
    checks: Checks,
    /// Tenants that did not open when they were asked for last, and the code of the reason.
    tenants_in_trouble: BTreeMap<String, ErrorCode>,
    leases: Leases,
}

#[derive(ToSchema)]
pub(in crate::server) struct Checks {
    control_file: Check,
    key_provider: Check,
    storage: Check,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Check {
    ok: bool,
    #[schema(nullable = false)]
    error: Option<String>,
    /// `off` where there is no key provider.
    #[schema(nullable = false)]
    encryption: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewTenant {
    id: TenantId,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Tenants {
    /// Sorted.
    tenants: Vec<TenantId>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewDocument {
    table: TableName,
    fields: Fields,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Patch {
    /// Merged into the document's top level.
    patch: Fields,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Written {
    id: DocumentId,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Documents {
    data: Vec<Document>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct OneDocument {
    document: Document,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Batch {
    #[schema(max_items = 10_000)]
    mutations: Vec<Mutation>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct BatchResults {
    /// One a mutation, in their order.
    results: Vec<Written>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Query {
    table: TableName,
    #[schema(max_items = 50)]
    filters: Option<Vec<Filter>>,
    order: Option<Order>,
    #[schema(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Order {
    field: Field,
    direction: Option<Direction>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Direction {
    Asc,
    Desc,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct PaginatedQuery {
    query: QueryInPages,
    #[schema(minimum = 1, maximum = 1000)]
    page_size: Option<u32>,
    /// `next_cursor` of the page before.
    after: Option<String>,
}

/// A query without a limit: a page has a size.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct QueryInPages {
    table: TableName,
    #[schema(max_items = 50)]
    filters: Option<Vec<Filter>>,
    order: Option<Order>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Page {
    data: Vec<Document>,
    #[schema(required)]
    next_cursor: Option<String>,
    has_more: bool,
}

/// Which part of the journal.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct JournalPart {
    /// The number after which to begin.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// How many records.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct JournalPage {
    records: Vec<JournalRecord>,
    next_cursor: i64,
    latest_sequence: i64,
    /// Every record after this number is still there.
    cursor_floor: i64,
    has_more: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct JournalRecord {
    sequence: i64,
    r#type: Change,
    table: TableName,
    id: DocumentId,
    timestamp: i64,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Change {
    Insert,
    Update,
    Delete,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TokenRotated {
    rotated: bool,
    rotations: u64,
}

/// How closely files are looked at.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct StatusPart {
    /// `unwrap` without it, `none` where that would cost calls over the network.
    verify: Option<Verify>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Verify {
    None,
    Unwrap,
    Open,
    Pages,
}

/// As `nimbus encryption status --format json`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct EncryptionStatus {
    enabled: bool,
    verify: Verify,
    #[schema(required)]
    provider: Option<AnyObject>,
    files: Vec<AnyObject>,
    summary: Summary,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Summary {
    files: u64,
    ok: u64,
    problems: u64,
}

/// As the flags of `nimbus encryption rotate-kek`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct RotateKek {
    path: Option<String>,
    all: Option<bool>,
    new_key_provider: Option<String>,
    new_master_key_file: Option<String>,
    new_key_dir: Option<String>,
    new_aws_kms_key_id: Option<String>,
    new_aws_region: Option<String>,
    new_aws_endpoint_url: Option<String>,
    add_recipients: Option<Vec<String>>,
    drop_recipients: Option<Vec<String>>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Shred {
    tenant_id: TenantId,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Begun {
    /// What to ask after at `/api/admin/operations/{id}`.
    operation: String,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Operation {
    id: String,
    kind: String,
    state: OperationState,
    done: u64,
    total: u64,
    #[schema(required)]
    result: Option<AnyObject>,
    #[schema(required)]
    error: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum OperationState {
    Running,
    Done,
    Failed,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct AuditVerified {
    lines: u64,
    sealed: u64,
    head: u64,
    problems: Vec<AuditProblem>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct AuditProblem {
    file: String,
    line: u64,
    problem: String,
}

/// What a command beside the server does with keys.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct KeyEvent {
    event: KeyEventKind,
    outcome: KeyEventOutcome,
    subject: Option<String>,
    deks: Vec<String>,
    keys: Vec<String>,
    actor: String,
    detail: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum KeyEventKind {
    Export,
    Migrate,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum KeyEventOutcome {
    Begun,
    Done,
    Failed,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Recorded {
    recorded: bool,
}

/// A whole app: what is not in it is not there once it is active.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Deploy {
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    schemas: Vec<TableSchema>,
    crons: Vec<NewCron>,
    files: Vec<DeployFile>,
    /// Only says what would change.
    #[schema(required = false)]
    dry_run: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct DeployFile {
    path: String,
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sha256: String,
    content_base64: String,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TableSchema {
    table: TableName,
    #[schema(max_items = 1000)]
    fields: Option<Vec<FieldRule>>,
    #[schema(max_items = 32)]
    indexes: Option<Vec<IndexRule>>,
    /// A JSON Schema, draft 2020-12.
    json_schema: Option<AnyObject>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct FieldRule {
    name: Field,
    field_type: FieldType,
    #[schema(required = false)]
    required: bool,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum FieldType {
    String,
    Number,
    Boolean,
    Array,
    Object,
    Any,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct IndexRule {
    #[schema(pattern = "^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
    name: String,
    #[schema(min_items = 1)]
    fields: Vec<Field>,
    #[schema(required = false)]
    unique: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewCron {
    name: CronName,
    schedule: Schedule,
    mutation: Mutation,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Deployed {
    #[schema(required)]
    generation: Option<i64>,
    #[schema(required)]
    previous_generation: Option<i64>,
    activated: bool,
    diff: Diff,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Diff {
    files: Changes,
    schemas: Changes,
    crons: Changes,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Changes {
    added: Names,
    changed: Names,
    removed: Names,
    unchanged: u64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Names {
    count: u64,
    /// The first of them.
    names: Vec<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Generations {
    #[schema(required)]
    active: Option<i64>,
    generations: Vec<Generation>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Generation {
    generation: i64,
    name: String,
    created_at: i64,
    schemas: i64,
    crons: i64,
    files: i64,
    bytes: i64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TenantLock {
    tenant_id: TenantId,
    locked: bool,
    changed: bool,
}

/// As `nimbus doctor --format json`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Examination {
    checks: Vec<AnyObject>,
    warnings: u64,
    problems: u64,
}

/// Files under keys that are asked for again and again, and the keys that do not answer, or answer no.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Leases {
    files: u64,
    keys_in_trouble: Vec<KeyInTrouble>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct KeyInTrouble {
    key_id: String,
    state: KeyTrouble,
    for_seconds: u64,
    open_files: u64,
    #[schema(required)]
    served_for_seconds: Option<u64>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum KeyTrouble {
    Unavailable,
    Revoked,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewJob {
    /// At most 3650 days.
    #[schema(minimum = 0, maximum = 315_360_000_000_i64)]
    run_after_ms: i64,
    mutation: Mutation,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Scheduled {
    job_id: JobId,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Jobs {
    jobs: Vec<Job>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Job {
    id: JobId,
    run_at: i64,
    mutation: Mutation,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct JobResult {
    result: FinishedJob,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct FinishedJob {
    id: JobId,
    run_at: i64,
    mutation: Mutation,
    finished_at: i64,
    outcome: Outcome,
    #[schema(required)]
    error: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Outcome {
    Succeeded,
    Failed,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct CronMade {
    name: CronName,
    next_run_at: i64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Crons {
    crons: Vec<CronState>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct CronState {
    name: CronName,
    schedule: AnyObject,
    mutation: Mutation,
    origin: CronOrigin,
    next_run_at: i64,
    #[schema(required)]
    last_run: Option<LastRun>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum CronOrigin {
    Api,
    Deploy,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct LastRun {
    run_at: i64,
    finished_at: i64,
    outcome: Outcome,
    #[schema(required)]
    error: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Schemas {
    tables: BTreeMap<String, TableSchema>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct RotateDek {
    path: Option<String>,
    all: Option<bool>,
    provider: Option<String>,
    tenant_id: Option<TenantId>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NewKey {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    scope: Scope,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Scope {
    Read,
    Write,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ShownKey {
    id: String,
    /// Stored hashed: it is in this answer and nowhere else.
    key: String,
    name: String,
    scope: Scope,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Keys {
    keys: Vec<KnownKey>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct KnownKey {
    id: String,
    name: String,
    scope: Scope,
    created: String,
}

/// Which month.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct UsagePart {
    /// `2026-11`; all of them without it.
    #[param(pattern = "^[0-9]{4}-(0[1-9]|1[0-2])$")]
    month: Option<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Usage {
    months: Vec<MonthUsage>,
    not_counted: u64,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct MonthUsage {
    month: String,
    identities: u64,
    deleted_tenants: u64,
    capped: bool,
    tenants: Vec<TenantUsage>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct TenantUsage {
    tenant: TenantId,
    identities: u64,
    capped: bool,
}

/// Every answer that is no success.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ErrorEnvelope {
    error: ErrorBody,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct ErrorBody {
    code: ErrorCode,
    message: String,
    request_id: String,
    timestamp: String,
    severity: Severity,
    /// Whether the same request may succeed a little later.
    retryable: bool,
    #[schema(required)]
    detail: Option<String>,
    remediation: String,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Severity {
    Warning,
    Error,
    Critical,
}
