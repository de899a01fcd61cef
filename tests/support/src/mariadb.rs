use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Certified;
use crate::postgres::certify;

/// A MariaDB on this machine, run by an unprivileged user: the one that `scripts/test` started, one
/// of a test's own, or a node of a [`Galera`] cluster.
#[derive(Debug)]
pub struct MariaDb {
    dir: PathBuf,
    /// Which node of a cluster it is, as the script is told.
    node: Option<String>,
    running: Option<Child>,
    /// The directory, where it is this one's.
    _own: Option<TempDir>,
}

impl MariaDb {
    /// The one that all tests share: that of `scripts/test`, named in `NIMBUS_TEST_MARIADB_DIR`, or
    /// one that lasts as long as this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<MariaDb> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var("NIMBUS_TEST_MARIADB_DIR") {
            Ok(dir) => Self {
                dir: dir.into(),
                node: None,
                running: None,
                _own: None,
            },
            Err(_none) => Self::start(),
        })
    }

    /// The URL of that one.
    pub fn shared_url() -> String {
        Self::shared().url()
    }

    /// One of the caller's own, ended with this.
    pub fn start() -> Self {
        Self::start_as(None)
    }

    /// The same, which writes a binary log.
    pub fn start_logging() -> Self {
        Self::start_as(Some("log"))
    }

    fn start_as(node: Option<&str>) -> Self {
        let own = directory();
        let dir = own.path().to_owned();
        let running = launch(&dir, node);
        Self {
            dir,
            node: node.map(str::to_owned),
            running: Some(running),
            _own: Some(own),
        }
    }

    /// One that takes TLS alone, with this certificate.
    pub fn start_with_tls(certified: &Certified) -> Self {
        let own = directory();
        let dir = own.path().to_owned();
        certify(&dir, certified);
        let running = launch(&dir, None);
        Self {
            dir,
            node: None,
            running: Some(running),
            _own: Some(own),
        }
    }

    /// Gives it another certificate, for the next start.
    pub fn certify(&self, certified: &Certified) {
        certify(&self.dir, certified);
    }

    /// Its URL, with the password.
    pub fn url(&self) -> String {
        fs::read_to_string(self.dir.join("url")).expect("it has started")
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        let port = fs::read_to_string(self.dir.join("port")).expect("it has started");
        port.parse().expect("a port")
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.dir.join("log")).expect("it has a log");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// A client program of MariaDB, which may do everything there.
    pub fn client(&self, program: &str) -> Command {
        let installed = fs::read_to_string(self.dir.join("installation")).expect("it has started");
        let usr = Path::new(&installed).join("usr");
        let mut command = Command::new(usr.join("bin").join(program));
        let libraries = fs::read_dir(usr.join("lib")).expect("libraries");
        let libraries = libraries.filter_map(|one| Some(one.ok()?.path()));
        let library = libraries
            .into_iter()
            .find(|path| path.to_string_lossy().ends_with("-linux-gnu"));
        command
            .env("LD_LIBRARY_PATH", library.unwrap_or_default())
            .arg("--no-defaults")
            .arg("--socket")
            .arg(self.dir.join("data/sock"))
            .args(["--user", "root"])
            .stdin(Stdio::null());
        command
    }

    /// Runs statements; what they give, a line a row, or what the client said.
    pub fn sql(&self, statements: &str) -> Result<String, String> {
        let mut asking = self.client("mariadb");
        let asked = asking
            .args(["--batch", "--skip-column-names", "--execute"])
            .arg(format!(
                "SET SESSION sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES'; {statements}"
            ))
            .output()
            .expect("mariadb runs");
        if !asked.status.success() {
            return Err(String::from_utf8_lossy(&asked.stderr).into_owned());
        }
        let given = String::from_utf8(asked.stdout).expect("UTF-8");
        Ok(given.trim().to_owned())
    }

    /// Kills it, as a machine that dies does.
    pub fn kill(&mut self) {
        let pid = fs::read_to_string(self.dir.join("server.pid")).expect("it runs");
        let killed = Command::new("kill")
            .args(["-KILL", "--", &format!("-{pid}")])
            .status();
        assert!(
            killed.expect("kill").success(),
            "mariadb was not there to be killed"
        );
        let mut running = self.running.take().expect("it was started here");
        let _ended = running.wait().expect("it was started here");
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) {
        fs::remove_file(self.dir.join("url")).expect("it ran before");
        self.running = Some(launch(&self.dir, self.node.as_deref()));
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let pid = running.id().to_string();
            let _ended = Command::new("kill").args(["-TERM", &pid]).status();
            let _ended = running.wait();
        }
    }
}

/// A Galera cluster of three nodes.
#[derive(Debug)]
pub struct Galera {
    /// The nodes, of which the first began it.
    pub nodes: Vec<MariaDb>,
    _dir: TempDir,
}

impl Galera {
    /// One of the caller's own, ended with this.
    pub fn start() -> Self {
        let dir = directory();
        // Held together, so that no two are the same.
        let held: Vec<TcpListener> = (0..12)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let ports: Vec<String> = held
            .iter()
            .map(|held| held.local_addr().expect("it is bound").port().to_string())
            .collect();
        let lines: Vec<String> = ports.chunks(4).map(|node| node.join(" ")).collect();
        fs::write(dir.path().join("ports"), lines.join("\n")).expect("the directory is ours");
        drop(held);
        let nodes = ["first", "1", "2"].map(|node| {
            let dir = dir.path().join(node);
            fs::create_dir(&dir).expect("the directory is ours");
            open_to_all(&dir);
            let running = launch(&dir, Some(node));
            MariaDb {
                dir,
                // It joins the others when it comes again.
                node: Some(if node == "first" { "0" } else { node }.to_owned()),
                running: Some(running),
                _own: None,
            }
        });
        Self {
            nodes: nodes.into(),
            _dir: dir,
        }
    }

    /// The URL of all nodes, this one first.
    pub fn url(&self, first: usize) -> String {
        let url = self.nodes[first].url();
        let others = self.nodes.iter().enumerate();
        let others = others.filter(|(number, _)| *number != first);
        let others: String = others
            .map(|(_, node)| format!(",127.0.0.1:{}", node.port()))
            .collect();
        url.replace('?', &format!("{others}?connect-timeout=2&"))
    }
}

/// A directory that another user may enter.
fn directory() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory for MariaDB");
    open_to_all(dir.path());
    dir
}

fn open_to_all(dir: &Path) {
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir, open).expect("the directory is ours");
}

fn launch(dir: &Path, node: Option<&str>) -> Child {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let installed = std::env::var_os("NIMBUS_TEST_MARIADB")
        .map_or_else(|| root.join("target/test-env/mariadb"), PathBuf::from);
    let mut running = Command::new("python3")
        .arg(root.join("scripts/test-mariadb.py"))
        .arg(installed)
        .arg(dir)
        .arg(std::process::id().to_string())
        .args(node)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("python3");
    let until = Instant::now() + Duration::from_secs(120);
    while !dir.join("url").exists() {
        let ended = running.try_wait().expect("it was started here");
        assert!(
            ended.is_none(),
            "mariadb did not start: scripts/test --setup unpacks it"
        );
        assert!(
            Instant::now() < until,
            "mariadb did not start within two minutes"
        );
        sleep(Duration::from_millis(20));
    }
    running
}
