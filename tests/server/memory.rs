//! The memory of the running server, searched for keys as root can: none of a tenant that was
//! closed, in whatever way; of one that is open, only where SECURITY.md says. Nor are documents of
//! a closed tenant in the page cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use hmac::Hmac;
use nimbus_manifests::{
    HKDF_INFO_DATA, HKDF_INFO_MANIFEST, MacKey, ProviderKind, SealedManifest, Wrap, WrapContext,
};
use nimbus_test_support::{Machine, Server};
use serde_json::json;
use sha2::{Sha256, Sha512};

use nimbus_test_support::until;

use super::cloud::Cloud;
use super::{is_root, machine};

/// The keys of one file, and what each looks like in memory.
struct Keys(Vec<(&'static str, [u8; 32])>);

impl Keys {
    /// From its data key, as the formats define them; that they are the right ones is proven on the
    /// manifest and on page 1.
    fn of(dek: [u8; 32], manifest: &SealedManifest, page: &[u8]) -> Self {
        let salt = *manifest.claims().file_id().as_bytes();
        let data = hkdf(&salt, &dek, HKDF_INFO_DATA);
        let mut hmac_salt = [0; 16];
        for (masked, byte) in hmac_salt.iter_mut().zip(page) {
            *masked = byte ^ 0x3a;
        }
        let manifest_key = hkdf(&salt, &dek, HKDF_INFO_MANIFEST);
        let verified = manifest.verify(&MacKey::init_with(|key| *key = manifest_key));
        assert!(verified.is_ok(), "the data key is another one");
        let page_key = pbkdf2_twice(&data, &hmac_salt);
        // Of page 1: what follows the salt, with the nonce, and the page's number.
        let (sealed, tag) = page[16..4096].split_at(4096 - 16 - 64);
        let made = mac::<Hmac<Sha512>>(&page_key, &[sealed, &1_u32.to_le_bytes()]);
        assert_eq!(made, tag, "the page's key is another one");
        Self(vec![
            ("DEK", dek),
            ("cipher key", data),
            ("manifest key", manifest_key),
            ("page MAC key", page_key),
        ])
    }

    /// Half a key is as telling as a whole one, and the schedules of AES begin or end with one.
    /// HMAC pads keys with 0x36 and 0x5c.
    fn patterns(&self) -> Vec<(String, Vec<u8>)> {
        let mut patterns = Vec::new();
        for (name, key) in &self.0 {
            for (half, bytes) in [("first half", &key[..16]), ("second half", &key[16..])] {
                let xor = |mask: u8| bytes.iter().map(|byte| byte ^ mask).collect::<Vec<u8>>();
                patterns.extend([
                    (format!("{name}, {half}"), bytes.to_vec()),
                    (format!("{name}, {half}, inner pad"), xor(0x36)),
                    (format!("{name}, {half}, outer pad"), xor(0x5c)),
                    (
                        format!("{name}, {half}, hex"),
                        HEXLOWER.encode(bytes).into_bytes(),
                    ),
                    (
                        format!("{name}, {half}, HEX"),
                        HEXUPPER.encode(bytes).into_bytes(),
                    ),
                ]);
            }
            let base64 = BASE64.encode(key);
            patterns.push((format!("{name}, base64"), base64.as_bytes()[..40].to_vec()));
        }
        patterns
    }

    /// Where in the server's memory they are: what was found, and in what kind of region.
    fn found_in(&self, server: &Server) -> BTreeMap<String, BTreeSet<String>> {
        let patterns = self.patterns();
        let mut found = BTreeMap::new();
        search(server.pid(), &patterns, |name, region| {
            found
                .entry(name.to_owned())
                .or_insert_with(BTreeSet::new)
                .insert(region);
        });
        found
    }
}

fn hkdf(salt: &[u8], key: &[u8], info: &[u8]) -> [u8; 32] {
    let prk = mac::<Hmac<Sha256>>(salt, &[key]);
    mac::<Hmac<Sha256>>(&prk, &[info, &[1]])
        .try_into()
        .expect("32 bytes")
}

/// PBKDF2-HMAC-SHA512 of two rounds, first 32 bytes.
fn pbkdf2_twice(key: &[u8], salt: &[u8]) -> [u8; 32] {
    let first = mac::<Hmac<Sha512>>(key, &[salt, &[0, 0, 0, 1]]);
    let second = mac::<Hmac<Sha512>>(key, &[&first]);
    let mut out = [0; 32];
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = first[index] ^ second[index];
    }
    out
}

fn mac<M: hmac::Mac + hmac::KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = <M as hmac::KeyInit>::new_from_slice(key).expect("any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// Reads all memory of a process that can be read and tells every place where a pattern stands.
fn search(pid: u32, patterns: &[(String, Vec<u8>)], mut found: impl FnMut(&str, String)) {
    let mut by_start: BTreeMap<[u8; 4], Vec<usize>> = BTreeMap::new();
    let mut starts = vec![false; 1 << 16];
    for (index, (_, pattern)) in patterns.iter().enumerate() {
        starts[usize::from(u16::from_be_bytes([pattern[0], pattern[1]]))] = true;
        let start = pattern[..4].try_into().expect("four bytes");
        by_start.entry(start).or_default().push(index);
    }
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root reads it");
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its mappings");
    for region in regions(&maps) {
        let mut at = region.from;
        // Chunks overlap by less than the longest pattern.
        while at < region.to {
            let length = usize::try_from((region.to - at).min(CHUNK)).expect("a chunk");
            let mut chunk = vec![0; length];
            let Ok(read) = memory.read_at(&mut chunk, at) else {
                break;
            };
            chunk.truncate(read);
            look(&chunk, &starts, &by_start, patterns, |name, offset| {
                let place = format!("{} +{:#x}", region.kind, at + offset as u64 - region.from);
                found(name, place);
            });
            if read < length || at + CHUNK >= region.to {
                break;
            }
            at += CHUNK - OVERLAP;
        }
    }
}

fn look(
    chunk: &[u8],
    starts: &[bool],
    by_start: &BTreeMap<[u8; 4], Vec<usize>>,
    patterns: &[(String, Vec<u8>)],
    mut found: impl FnMut(&str, usize),
) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = 0;
    while at + 4 <= chunk.len() {
        if at % 4096 == 0 && chunk.len() >= at + 4096 && chunk[at..at + 4096] == ZEROS {
            at += 4096 - 8;
            continue;
        }
        let pair = usize::from(chunk[at]) << 8 | usize::from(chunk[at + 1]);
        if starts[pair]
            && let Some(candidates) = by_start.get(&chunk[at..at + 4])
        {
            for candidate in candidates {
                let (name, pattern) = &patterns[*candidate];
                if chunk[at..].starts_with(pattern) {
                    found(name, at);
                }
            }
        }
        at += 1;
    }
}

struct Region {
    from: u64,
    to: u64,
    kind: String,
}

/// What of `smaps` can be read: addresses, and a word on each. Pages that are left out of dumps and
/// forks are the key pages; what is left out of dumps alone is the page cache.
fn regions(smaps: &str) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    let mut readable = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "VmFlags:" {
            if readable && line.contains(" dd") {
                let is_key = line.contains(" dc");
                let kind = if is_key { "key page" } else { "page cache" };
                regions.last_mut().expect("a region").kind = kind.into();
            }
        } else if !first.ends_with(':')
            && let Some((from, to)) = first.split_once('-')
        {
            let parse = |text| u64::from_str_radix(text, 16).expect("an address");
            let flags = words.next().unwrap_or_default().to_owned();
            let name = words.nth(3).unwrap_or("anonymous").to_owned();
            readable = flags.starts_with('r') && !name.starts_with("[v");
            if readable {
                regions.push(Region {
                    from: parse(from),
                    to: parse(to),
                    kind: name,
                });
            }
        }
    }
    regions
}

/// No more than is searched quickly.
const PAGE_CACHE: &[&str] = &["--page-cache-bytes", "8MiB"];
const CANARY: &str = "lies in a page that is cached: 6b1f27a09c4e";
const CHUNK: u64 = 1 << 20;
const OVERLAP: u64 = 64;

fn manifest_of(machine: &Machine, tenant: &str) -> SealedManifest {
    let path = machine.find(&format!("{tenant}.sqlite3.nimbus-enc"));
    SealedManifest::parse(&fs::read(path).expect("the manifest")).expect("a manifest")
}

fn page_of(machine: &Machine, tenant: &str) -> Vec<u8> {
    let path = machine.find(&format!("{tenant}.sqlite3"));
    fs::read(path).expect("the database")[..4096].to_vec()
}

/// A tenant's keys, by its recovery wrap and stock age.
fn keys(machine: &Machine, tenant: &str, identity: &Path) -> Keys {
    let manifest = manifest_of(machine, tenant);
    let wraps = &manifest.claims().deks()[0].wraps;
    let wrap = wraps.iter().find(|wrap| wrap.provider == ProviderKind::Age);
    let mut age = Command::new("age")
        .args(["--decrypt", "--identity"])
        .arg(identity)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("age (scripts/test installs it)");
    let mut input = age.stdin.take().expect("its input");
    input
        .write_all(&wrap.expect("a recovery wrap").blob)
        .expect("age reads");
    drop(input);
    let opened = age.wait_with_output().expect("age ends").stdout;
    let dek = opened[32..64].try_into().expect("64 bytes");
    Keys::of(dek, &manifest, &page_of(machine, tenant))
}

/// A tenant's keys, by moto.
fn keys_by_kms(cloud: &Cloud, tenant: &str) -> Keys {
    let manifest = manifest_of(&cloud.machine, tenant);
    let claims = manifest.claims();
    let entry = &claims.deks()[0];
    let wrap: &Wrap = &entry.wraps[0];
    let context = WrapContext {
        subject: claims.subject(),
        file_id: claims.file_id(),
        cipher: claims.cipher(),
        dek_id: entry.id,
    };
    let reply = cloud.moto.kms(
        "us-east-1",
        "Decrypt",
        &json!({
            "KeyId": wrap.key_id.as_str(),
            "CiphertextBlob": BASE64.encode(&wrap.blob),
            "EncryptionContext": {
                "nimbus:format": "nimbus-enc/1",
                "nimbus:subject": context.subject.as_str(),
                "nimbus:file-id": context.file_id.to_string(),
                "nimbus:cipher": context.cipher.to_string(),
                "nimbus:dek-id": context.dek_id.to_string(),
            },
        }),
    );
    let plaintext = reply["Plaintext"].as_str().expect("a data key");
    let dek = BASE64.decode(plaintext.as_bytes()).expect("base64");
    let dek = dek.try_into().expect("32 bytes");
    Keys::of(dek, &manifest, &page_of(&cloud.machine, tenant))
}

fn things(tenant: &str) -> String {
    format!("/api/tenants/{tenant}/documents/things")
}

/// Writes and reads, on connections that both open.
fn use_tenant(server: &Server, tenant: &str) {
    for number in 0..50 {
        let text = canary(tenant);
        server.insert(tenant, "things", &json!({"n": number, "text": text}));
        let _ = server.get(&things(tenant));
    }
}

fn canary(tenant: &str) -> String {
    format!("{CANARY} of {tenant}")
}

/// In which kinds of regions a document of the tenant lies.
fn places_of(tenant: &str, server: &Server) -> BTreeSet<String> {
    let document = canary(tenant);
    let pattern = (document.clone(), document.into_bytes());
    let mut places = BTreeSet::new();
    search(server.pid(), &[pattern], |_, place| {
        let (kind, _offset) = place.split_once(" +").expect("a kind and an offset");
        places.insert(kind.to_owned());
    });
    places
}

/// While the tenant is open: the search finds its data key, in a key page, and nothing else that
/// stays. (SQLCipher keeps its keys masked; a call that is under way has keys on its stack.)
#[track_caller]
fn assert_where_stated(keys: &Keys, tenant: &str, server: &Server) {
    let mut astray: Option<BTreeSet<(String, String)>> = None;
    for _again in 0..10 {
        let found = keys.found_in(server);
        assert!(
            found.contains_key("DEK, first half"),
            "the search finds nothing: {found:?}"
        );
        let places = found.into_iter().flat_map(|(name, places)| {
            let named = move |place| (name.clone(), place);
            places.into_iter().map(named)
        });
        let now = places
            .filter(|(_, place)| !place.starts_with("key page"))
            .collect();
        let still = match astray {
            Some(before) => &before & &now,
            None => now,
        };
        let is_none = still.is_empty();
        astray = Some(still);
        if is_none {
            break;
        }
    }
    assert_eq!(astray, Some(BTreeSet::new()), "keys that stay there");
    // And it looks where keys would be astray: a document lies in the clear in the pages that are
    // cached.
    let places = places_of(tenant, server);
    let kinds = ["[heap]", "page cache"].map(|kind| places.contains(kind));
    assert_eq!(
        kinds, [true; 2],
        "the search does not look there: {places:?}"
    );
}

/// After a tenant was closed: no key anywhere, and no document in the page cache. A request that
/// was using it may take a moment to let go.
#[track_caller]
fn assert_gone(keys: &Keys, tenant: &str, server: &Server, after: &str) {
    let look = || (keys.found_in(server), places_of(tenant, server));
    let mut found = look();
    for _again in 0..100 {
        if found.0.is_empty() && !found.1.contains("page cache") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        found = look();
    }
    panic!("after {after}: {found:#?}");
}

fn can_read_memory() -> bool {
    if !is_root() {
        eprintln!("skipped: only root reads the memory of a process that is not dumpable");
    }
    is_root()
}

fn local(arguments: &[&str]) -> (Machine, Server, std::path::PathBuf) {
    let machine = machine();
    let identity = machine.path("recovery.txt");
    let made = Command::new("age-keygen").arg("-o").arg(&identity).output();
    assert!(
        made.expect("age-keygen (scripts/test installs it)")
            .status
            .success()
    );
    let text = fs::read_to_string(&identity).expect("the identity");
    let (_, recipient) = text.split_once("public key: ").expect("a recipient");
    let recipient = recipient.lines().next().expect("a line").trim();
    let arguments = [
        PAGE_CACHE,
        &["--encryption-recovery-recipient", recipient],
        arguments,
    ]
    .concat();
    let server = machine.start(&arguments);
    for tenant in ["one", "two"] {
        server.create("/api/tenants", &json!({"id": tenant}));
    }
    (machine, server, identity)
}

#[test]
fn no_key_stays_in_memory_when_a_tenant_makes_room_for_another() {
    if !can_read_memory() {
        return;
    }
    let (machine, server, identity) = local(&["--max-open-tenants", "1"]);
    let keys = keys(&machine, "one", &identity);
    use_tenant(&server, "one");
    assert_where_stated(&keys, "one", &server);
    use_tenant(&server, "two");
    assert_gone(&keys, "one", &server, "eviction");
}

#[test]
fn no_key_stays_in_memory_of_a_deleted_or_locked_tenant() {
    if !can_read_memory() {
        return;
    }
    let (machine, server, identity) = local(&[]);
    let [one, two] = ["one", "two"].map(|tenant| keys(&machine, tenant, &identity));
    use_tenant(&server, "one");
    use_tenant(&server, "two");
    assert_where_stated(&one, "one", &server);
    assert_where_stated(&two, "two", &server);
    let lock = machine.nimbus(&["encryption", "lock", "--tenant-id", "two"]);
    machine.run_to_end(lock).expect(0, &[]);
    let (status, _none) = server.request("DELETE", "/api/tenants/one", None);
    assert_eq!(status, 204);
    assert_gone(&one, "one", &server, "deletion");
    assert_gone(&two, "two", &server, "lock");
}

#[test]
fn no_key_stays_in_memory_after_a_revocation() {
    if !can_read_memory() {
        return;
    }
    let cloud = Cloud::new();
    let server = cloud.start_with(&[PAGE_CACHE, &["--encryption-key-lease", "1s"]].concat());
    server.create("/api/tenants", &json!({"id": "one"}));
    let keys = keys_by_kms(&cloud, "one");
    use_tenant(&server, "one");
    let renewals = cloud.proxy.calls("Decrypt").len();
    until("leases were renewed", || {
        cloud.proxy.calls("Decrypt").len() > renewals + 4
    });
    // Connections are used again, as those to AWS: what their buffers hold is not freed with the
    // call.
    let calls = cloud.proxy.calls("Decrypt").len() + cloud.proxy.calls("GenerateDataKey").len();
    assert!(cloud.proxy.connections() < calls, "{calls} calls");
    assert_where_stated(&keys, "one", &server);
    cloud.disable(&cloud.key);
    until("it is closed", || {
        server.log().matches("lease was not renewed").count() >= 2
    });
    assert_gone(&keys, "one", &server, "revocation");
}
