use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Certified;

/// A Postgres on this machine, run by an unprivileged user: the one that `scripts/test` started, or
/// one of a test's own.
#[derive(Debug)]
pub struct Postgres {
    dir: TempDir,
    running: Child,
}

impl Postgres {
    /// The URL of the one that all tests share: that of `scripts/test`, named in
    /// `NIMBUS_TEST_POSTGRES_URL`, or one that lasts as long as this process.
    pub fn shared_url() -> String {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        std::env::var("NIMBUS_TEST_POSTGRES_URL")
            .unwrap_or_else(|_| SHARED.get_or_init(Self::start).url())
    }

    /// A client program of Postgres, told to use this database.
    pub fn client(program: &str, url: &str) -> Command {
        let named = std::env::var_os("NIMBUS_TEST_POSTGRES_BIN");
        let named = named.map(|bin| Path::new(&bin).join(program));
        let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let installed =
            installed.filter_map(|version| Some(version.ok()?.path().join("bin").join(program)));
        // Where Debian puts it, which is not in PATH.
        let found = installed.filter(|path| path.exists()).max();
        let found = named.or(found);
        let mut command = Command::new(found.unwrap_or_else(|| program.into()));
        command.arg("--dbname").arg(url).stdin(Stdio::null());
        command
    }

    /// One of the caller's own, ended with this.
    pub fn start() -> Self {
        Self::in_directory(|_| {})
    }

    /// One that takes TLS, too, with this certificate.
    pub fn start_with_tls(certified: &Certified) -> Self {
        Self::in_directory(|dir| certify(dir, certified))
    }

    /// A standby of another one, which calls itself `standby` there.
    pub fn standby_of(primary: &Self) -> Self {
        Self::in_directory(|dir| {
            fs::write(dir.join("primary"), primary.url()).expect("a file");
        })
    }

    fn in_directory(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a directory for Postgres");
        // Its user is another one.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).expect("the directory is ours");
        prepare(dir.path());
        let running = launch(dir.path());
        Self { dir, running }
    }

    /// Gives it another certificate, for the next start.
    pub fn certify(&self, certified: &Certified) {
        certify(self.dir.path(), certified);
    }

    /// Its URL, with the password.
    pub fn url(&self) -> String {
        fs::read_to_string(self.dir.path().join("url")).expect("it has started")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).expect("it has a log")
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Kills it, as a machine that dies does.
    pub fn kill(&mut self) {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).expect("it runs");
        let pid = pid.lines().next().expect("its pid").to_owned();
        // Its own session, the processes of its connections included.
        let killed = Command::new("kill")
            .args(["-KILL", "--", &format!("-{pid}")])
            .status();
        assert!(
            killed.expect("kill").success(),
            "postgres was not there to be killed"
        );
        let _ended = self.running.wait().expect("it was started here");
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) {
        fs::remove_file(self.dir.path().join("url")).expect("it ran before");
        self.running = launch(self.dir.path());
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = self.running.id().to_string();
        let _ended = Command::new("kill").args(["-TERM", &pid]).status();
        let _ended = self.running.wait();
    }
}

/// Its script gives the files to its user; written again, they stay that user's.
pub(crate) fn certify(dir: &Path, certified: &Certified) {
    fs::write(dir.join("tls.crt"), &certified.certificate).expect("a certificate");
    fs::write(dir.join("tls.key"), &certified.key).expect("a key");
}

fn launch(dir: &Path) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/test-postgres.py");
    let mut running = Command::new("python3")
        .arg(script)
        .arg(dir)
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("python3");
    let until = Instant::now() + Duration::from_secs(60);
    while !dir.join("url").exists() {
        let ended = running.try_wait().expect("it was started here");
        assert!(
            ended.is_none(),
            "postgres did not start: Debian, Ubuntu: apt-get install postgresql-15"
        );
        assert!(
            Instant::now() < until,
            "postgres did not start within a minute"
        );
        sleep(Duration::from_millis(20));
    }
    running
}
