//! How a MariaDB or MySQL database is reached.

use std::{
    fmt::{self, Debug},
    time::Duration,
};

use mysql_async::{Opts, OptsBuilder, SslOpts};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::super::driver::NotAUrl;

/// How a database is reached, and what the tenants' databases are called there.
#[derive(Clone)]
pub struct MysqlOptions {
    /// In the order in which they are tried.
    pub(super) hosts: Vec<(String, u16)>,
    user: String,
    password: Option<Zeroizing<String>>,
    /// The database of the URL, which is none of Nimbus's.
    database: Option<String>,
    pub(super) tls: bool,
    pub(super) connect_timeout: Duration,
    pub(super) metadata_database: String,
    pub(super) tenant_prefix: String,
    /// Kept, and at most.
    pub(super) connections: (usize, usize),
}

impl MysqlOptions {
    /// The servers of a URL.
    ///
    /// # Errors
    ///
    /// [`NotAUrl`].
    pub fn new(url: &str) -> Result<Self, NotAUrl> {
        Self::parse(url).ok_or(NotAUrl {
            engine: "MySQL",
            form: "mysql://user:password@host:3306,host2?ssl-mode=required",
            page: "docs/mysql.md",
        })
    }

    fn parse(url: &str) -> Option<Self> {
        let rest = url
            .strip_prefix("mysql://")
            .or_else(|| url.strip_prefix("mariadb://"))?;
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@')?;
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        let hosts = hosts.split(',').map(host).collect::<Option<Vec<_>>>()?;
        let mut options = Self {
            hosts,
            user: decoded(user).filter(|user| !user.is_empty())?,
            password: match password {
                Some(password) => Some(Zeroizing::new(decoded(password)?)),
                None => None,
            },
            database: decoded(database).filter(|name| !name.is_empty()),
            tls: true,
            connect_timeout: CONNECT_TIMEOUT,
            metadata_database: "nimbus_provider".to_owned(),
            tenant_prefix: "tenant_".to_owned(),
            connections: (0, 32),
        };
        for parameter in parameters.split('&').filter(|part| !part.is_empty()) {
            match parameter.split_once('=')? {
                ("ssl-mode", "required") => options.tls = true,
                ("ssl-mode", "disabled") => options.tls = false,
                ("connect-timeout", seconds) => {
                    let seconds = seconds.parse().ok().filter(|seconds| *seconds > 0)?;
                    options.connect_timeout = Duration::from_secs(seconds);
                }
                _ => return None,
            }
        }
        Some(options)
    }

    /// The database of the provider's own tables.
    #[must_use]
    pub fn metadata_database(mut self, name: String) -> Self {
        self.metadata_database = name;
        self
    }

    /// What the names of tenants' databases begin with.
    #[must_use]
    pub fn tenant_prefix(mut self, prefix: String) -> Self {
        self.tenant_prefix = prefix;
        self
    }

    /// How many connections are kept open, and how many there may be.
    #[must_use]
    pub fn connections(mut self, kept: usize, most: usize) -> Self {
        self.connections = (kept.min(most), most.max(1));
        self
    }

    /// Hosts, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        let hosts = self.hosts.iter();
        let hosts: Vec<String> = hosts.map(|(name, port)| format!("{name}:{port}")).collect();
        let database = self.database.as_ref();
        let database = database.map_or(String::new(), |name| format!(", database {name}"));
        format!("MySQL at {}{database}", hosts.join(","))
    }

    /// How one of the hosts is reached.
    pub(super) fn driver(&self, host: usize, tls: Option<SslOpts>) -> Opts {
        let (name, port) = &self.hosts[host];
        OptsBuilder::default()
            .ip_or_hostname(name)
            .tcp_port(*port)
            .user(Some(&self.user))
            .pass(self.password.as_deref())
            .db_name(self.database.as_ref())
            .ssl_opts(tls)
            // It would ask the server for one, and go there without TLS.
            .prefer_socket(false)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEPALIVE))
            .stmt_cache_size(0)
            .into()
    }
}

impl Debug for MysqlOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MysqlOptions").field(&self.place()).finish()
    }
}

fn decoded(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn host(text: &str) -> Option<(String, u16)> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address, port.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(3306), |port| port.parse().ok())?;
    let name = decoded(name).filter(|name| !name.is_empty())?;
    Some((name, port))
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_hosts_and_says_no_password() {
        let url = "mysql://nim%40bus:p%40ss:w%2Frd@db1:3307,[::1]:3308,db3/app?ssl-mode=disabled&connect-timeout=2";
        let options = MysqlOptions::new(url).unwrap();
        assert_eq!(
            options.place(),
            "MySQL at db1:3307,::1:3308,db3:3306, database app"
        );
        assert_eq!(options.user, "nim@bus");
        assert_eq!(
            options.password.as_deref().map(String::as_str),
            Some("p@ss:w/rd")
        );
        assert!(!options.tls && options.connect_timeout == Duration::from_secs(2));
        assert!(!format!("{options:?}").contains("p@ss"));
        assert!(MysqlOptions::new("mysql://u@h").unwrap().tls);
    }

    #[test]
    fn what_is_no_url_is_refused_and_not_repeated() {
        for url in [
            "postgres://u:hunter2@h/d",
            "mysql://",
            "mysql://h",
            "mysql://:hunter2@h",
            "mysql://u:hunter2@",
            "mysql://u:hunter2@h:port",
            "mysql://u:hunter2@h?ssl-mode=prefer",
            "mysql://u:hunter2@h?no_such=1",
            "mysql://u:hunter2@h?connect-timeout=0",
        ] {
            let error = MysqlOptions::new(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{url}");
        }
    }
}
