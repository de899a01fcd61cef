//! KMS from inside a company: through a proxy, under a private authority. The SDK reads the
//! process's environment, so each case is a process of its own: the test starts itself again with
//! the environment of the case.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use nimbus_keyproviders::KeyProvider;
use nimbus_keyproviders::aws_kms::{AwsKms, KmsConfig};
use nimbus_test_support::{ConnectProxy, Moto, TlsFront};

use crate::common::{Owned, file, generate, key, private_dir, same};

const NAME: &str = "aws_network::kms_is_reached_through_a_proxy_and_under_a_private_authority";
const KEY: &str = "KEYPROVIDERS_TEST_NETWORK_KEY";
const ENDPOINT: &str = "KEYPROVIDERS_TEST_NETWORK_ENDPOINT";

/// What the process of a case does: a data key is made, and opened again.
async fn use_the_key(key_id: String) -> String {
    let config = KmsConfig {
        endpoint_url: std::env::var(ENDPOINT).ok(),
        max_attempts: 1,
        ..KmsConfig::new(key_id)
    };
    let kms = match AwsKms::connect(config).await {
        Ok(kms) => kms,
        Err(error) => return error.to_string(),
    };
    if let Err(error) = kms.check().await {
        return error.to_string();
    }
    let owned = Owned::demo();
    let (dek, wrap) = generate(&kms, &owned.context()).await;
    let again = key(kms.unwrap(&wrap, &owned.context()).await.unwrap());
    assert!(same(&dek, &again));
    "usable".to_owned()
}

struct Scene {
    arn: String,
    front: TlsFront,
    proxy: ConnectProxy,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let moto = Moto::start();
        let names = ["kms.us-east-1.amazonaws.com", "kms.invalid", "127.0.0.1"];
        let front = TlsFront::in_front_of(moto.url(), &names);
        Self {
            arn: moto.create_key(),
            proxy: ConnectProxy::to(front.address()),
            front,
            dir: private_dir(),
        }
    }

    /// What a process with this environment says.
    fn run(&self, environment: &[(&str, &str)]) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env(KEY, &self.arn)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said + &String::from_utf8_lossy(&output.stderr)
    }

    fn bundle(&self) -> String {
        path(&file(
            self.dir.path(),
            "ca.pem",
            self.front.authority().as_bytes(),
            0o600,
        ))
    }
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

#[test]
fn kms_is_reached_through_a_proxy_and_under_a_private_authority() {
    if let Ok(key_id) = std::env::var(KEY) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        println!("<{}>", runtime.block_on(use_the_key(key_id)));
        return;
    }
    let scene = Scene::new();
    let bundle = scene.bundle();
    let bundle = ("AWS_CA_BUNDLE", bundle.as_str());
    let direct = format!("https://{}", scene.front.address());
    let direct = (ENDPOINT, direct.as_str());

    // AWS's own endpoint, by a tunnel, with a password for the proxy.
    let proxy = format!("http://nimbus:p%40ss@{}", scene.proxy.address());
    let said = scene.run(&[("HTTPS_PROXY", &proxy), bundle]);
    assert!(said.contains("<usable>"), "{said}");
    let asked = scene.proxy.asked();
    assert!(!asked.is_empty());
    for asked in &asked {
        assert!(
            asked.starts_with("CONNECT kms.us-east-1.amazonaws.com:443 HTTP/1.1"),
            "{asked}"
        );
        // nimbus:p@ss
        let password = "proxy-authorization: basic bmltYnVzOnBAc3M=";
        assert!(
            asked
                .to_ascii_lowercase()
                .contains(&password.to_ascii_lowercase()),
            "{asked}"
        );
    }
    let passed = String::from_utf8_lossy(&scene.proxy.passed()).into_owned();
    assert!(!passed.is_empty());
    for plain in [
        "TrentService",
        "Plaintext",
        "CiphertextBlob",
        "nimbus:subject",
        "AWS4-HMAC",
    ] {
        assert!(!passed.contains(plain), "the proxy saw {plain}");
    }

    // Without a scheme, in small letters, and as ALL_PROXY.
    let bare = scene.proxy.address().to_string();
    for setting in ["https_proxy", "ALL_PROXY", "all_proxy"] {
        let before = scene.proxy.asked().len();
        let said = scene.run(&[(setting, &bare), bundle]);
        assert!(said.contains("<usable>"), "{setting}: {said}");
        assert!(scene.proxy.asked().len() > before, "{setting}");
    }

    // Loopback is never proxied, neither over TLS nor in the clear.
    let before = scene.proxy.asked().len();
    let all = url(scene.proxy.address());
    let proxies = [
        ("HTTPS_PROXY", &*all),
        ("HTTP_PROXY", &*all),
        ("ALL_PROXY", &*all),
    ];
    let said = scene.run(&[&proxies[..], &[direct, bundle]].concat());
    assert!(said.contains("<usable>"), "{said}");
    let moto = Moto::start();
    let said = scene.run(&[&proxies[..], &[(ENDPOINT, moto.url())]].concat());
    assert!(said.contains("<usable>"), "{said}");
    // Nor is what NO_PROXY names: this host is nobody's, so it is not reached.
    let nobody = (ENDPOINT, "https://kms.invalid");
    let said = scene.run(&[
        proxies[0],
        ("NO_PROXY", "example.com, .invalid"),
        nobody,
        bundle,
    ]);
    assert!(
        said.contains("https://kms.invalid cannot be reached"),
        "{said}"
    );
    assert_eq!(scene.proxy.asked().len(), before);
    // But for NO_PROXY the proxy would have been asked. An empty variable is not set.
    let said = scene.run(&[proxies[0], ("NO_PROXY", ""), nobody, bundle]);
    assert!(said.contains("<usable>"), "{said}");
    assert!(scene.proxy.asked().len() > before);

    // Nobody else vouches for this authority.
    let said = scene.run(&[direct]);
    assert!(
        said.contains("cannot be reached") && !said.contains("<usable>"),
        "{said}"
    );

    // What cannot be right is named, and no password is repeated.
    let garbage = path(&file(
        scene.dir.path(),
        "garbage.pem",
        b"no certificate",
        0o600,
    ));
    let broken = scene.front.authority().replace("MII", "MIJ");
    let broken = path(&file(
        scene.dir.path(),
        "broken.pem",
        broken.as_bytes(),
        0o600,
    ));
    for (setting, value, words) in [
        ("AWS_CA_BUNDLE", "/no/such.pem", "/no/such.pem"),
        ("AWS_CA_BUNDLE", &garbage, "no certificate in PEM"),
        ("AWS_CA_BUNDLE", &broken, "certificate 1"),
        (
            "HTTPS_PROXY",
            "socks5://nimbus:secret@127.0.0.1:1",
            "HTTPS_PROXY",
        ),
        ("HTTPS_PROXY", "http://nimbus:secret@", "HTTPS_PROXY"),
        ("AWS_PROFILE", "my team", "AWS_PROFILE"),
        ("AWS_REGION", "us-east-1 ", "AWS_REGION"),
        ("AWS_ENDPOINT_URL_KMS", "kms.example", "no scheme"),
    ] {
        // A bare id: with the ARN its region would count.
        let id = scene.arn.rsplit('/').next().unwrap();
        let region = ("AWS_REGION", "us-east-1");
        let said = scene.run(&[(KEY, id), region, (setting, value)]);
        assert!(
            said.contains(setting) && said.contains(words),
            "{setting}={value}: {said}"
        );
        assert!(
            !said.contains("secret") && !said.contains("panicked"),
            "{said}"
        );
    }
}
