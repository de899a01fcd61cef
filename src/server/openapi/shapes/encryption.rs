//! The bodies of `/api/admin/encryption`, what its operations end with, and the answer of `/debug/encryption/status`.

use utoipa::ToSchema;

use super::TenantId;

/// How closely files are looked at.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::server) struct StatusPart {
    /// `unwrap` without it, `none` where that would cost calls over the network.
    #[param(nullable = false)]
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
    provider: Option<KeyProvider>,
    /// The database that the tenants are in, which Nimbus does not encrypt; missing where they are among the files.
    #[schema(nullable = false)]
    unencrypted_tenants_in: Option<String>,
    /// By path.
    files: Vec<ProtectedFile>,
    summary: Summary,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct KeyProvider {
    kind: KeyProviderKind,
    /// The key that wraps; null for `key-dir`, which has one a file.
    #[schema(required)]
    key_id: Option<String>,
    /// Where local keys lie.
    #[schema(nullable = false)]
    path: Option<String>,
    /// Why the provider cannot be used.
    #[schema(nullable = false)]
    error: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::server) enum KeyProviderKind {
    MasterKeyFile,
    KeyDir,
    AwsKms,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ProtectedFile {
    path: String,
    /// Whose it is.
    #[schema(required)]
    subject: Option<String>,
    #[schema(required)]
    cipher: Option<String>,
    #[schema(required)]
    state: Option<FileState>,
    /// How often its manifest was written.
    #[schema(required)]
    revision: Option<u64>,
    #[schema(required)]
    file_id: Option<String>,
    #[schema(required)]
    dek_id: Option<String>,
    /// When that data key was drawn.
    #[schema(required)]
    dek_created: Option<String>,
    /// That data key is older than `--encryption-dek-max-age`.
    #[schema(required = false)]
    dek_overdue: bool,
    wraps: Vec<Wrap>,
    health: FileHealth,
    /// An operator locked the tenant.
    #[schema(required = false)]
    locked: bool,
    /// When it was last restored from its backup and proven.
    #[schema(nullable = false)]
    restored: Option<String>,
    /// What is wrong, and what to do next.
    #[schema(nullable = false)]
    detail: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum FileState {
    New,
    Ready,
    Rekeying,
}

#[derive(ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::server) enum FileHealth {
    Ok,
    Plaintext,
    ManifestMissing,
    ManifestCorrupt,
    DatabaseMissing,
    KeyUnavailable,
    KeyMismatch,
    SubjectMismatch,
    Rekeying,
    OrphanManifest,
    PageCorrupt,
    Deleting,
}

/// A key that wraps a data key, and since when.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Wrap {
    provider: String,
    key_id: String,
    at: String,
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
    #[schema(required = false)]
    path: String,
    #[schema(required = false)]
    all: bool,
    new_key_provider: Option<KeyProviderKind>,
    new_master_key_file: Option<String>,
    new_key_dir: Option<String>,
    new_aws_kms_key_id: Option<String>,
    new_aws_region: Option<String>,
    new_aws_endpoint_url: Option<String>,
    /// Whether tenants that the key map names leave their own keys, too.
    #[schema(required = false)]
    move_mapped: bool,
    #[schema(required = false)]
    add_recipients: Vec<String>,
    #[schema(required = false)]
    drop_recipients: Vec<String>,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct KekRotated {
    /// `<provider> <key id>` of the key that wraps now; without the key id for `key-dir`.
    key: String,
    /// How many files had their wraps changed.
    rewrapped: u64,
    /// How many had them already.
    unchanged: u64,
    /// How many of these stay under the keys that the key map names for their tenants.
    kept: u64,
    /// Recipients that were to be dropped, and to which no data key was wrapped.
    not_wrapped_to: Vec<String>,
    failed: Vec<NotRotated>,
}

/// A file that is as it was.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct NotRotated {
    path: String,
    error: String,
}

/// As the flags of `nimbus encryption rotate-dek`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct RotateDek {
    #[schema(required = false)]
    path: String,
    #[schema(required = false)]
    all: bool,
    provider: Option<Engine>,
    tenant_id: Option<TenantId>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::server) enum Engine {
    Sqlite,
    Redb,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct DekRotated {
    rotated: Vec<Renewed>,
    failed: Vec<NotRotated>,
}

/// A file with a new data key.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Renewed {
    path: String,
    subject: String,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Shred {
    tenant_id: TenantId,
    /// Also disable the KMS key, where it is this tenant's alone.
    #[schema(required = false)]
    disable_kms_key: bool,
    /// Backup repositories that it goes from, too: directories by their paths from the root, or s3://bucket/prefix.
    #[schema(required = false, max_items = 16)]
    from: Vec<String>,
}

/// What was removed of a tenant from a backup repository.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct RepositoryShredded {
    repository: String,
    /// The ids of the files that it was.
    files: Vec<String>,
    /// How many objects are removed.
    objects: u64,
    /// What an object lock keeps, and until when.
    kept: Vec<String>,
    /// Snapshots whose control file has a copy of its wrapped key.
    snapshots: Vec<u64>,
    /// Whether packs of continuous shipping are there.
    packs: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct Shredded {
    tenant: TenantId,
    /// Key files that were destroyed.
    destroyed_keys: Vec<String>,
    /// Keys by which copies of sidecar and data still open.
    alive: Vec<LivingKey>,
    #[schema(required)]
    own_kms_key: Option<OwnKey>,
    /// Whether anything of it was there besides what is in repositories.
    was_here: bool,
    /// What was removed of it from backup repositories.
    repositories: Vec<RepositoryShredded>,
    /// Where not, it is not known which keys wrapped it.
    manifest_read: bool,
    /// Whether its database was plaintext.
    plaintext: bool,
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct LivingKey {
    provider: String,
    key_id: String,
}

/// The KMS key that was this tenant's alone.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct OwnKey {
    key_id: String,
    disabled: bool,
}
