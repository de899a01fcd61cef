"""Runs a Postgres of its own as an unprivileged user, for scripts/test and for tests that end it.

    python3 scripts/test-postgres.py DIR PARENT_PID

Makes a cluster in DIR where there is none, starts it on a free loopback port (on the port of last time, where there was
one), writes its URL to DIR/url once it takes connections, and ends it when PARENT_PID is gone or at SIGTERM: a test run
that was killed leaves no server behind. NIMBUS_TEST_POSTGRES_BIN names the programs of another version than Debian's.
With DIR/tls.crt and DIR/tls.key it takes TLS, too; with the URL of another one in DIR/primary it is a standby of that.
"""

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time

PASSWORD = "p@ss:w/rd"


def binaries(root: str, user: str | None) -> str:
    if named := os.environ.get("NIMBUS_TEST_POSTGRES_BIN"):
        return usable(os.path.abspath(named), root, user)
    # Where Debian puts it, which is not in PATH.
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [shutil.which("initdb")]
    if not found[-1]:
        sys.exit("initdb is missing. Debian, Ubuntu: apt-get install postgresql-15")
    return os.path.dirname(os.path.realpath(found[-1]))


def usable(bin_dir: str, root: str, user: str | None) -> str:
    """The programs of a wheel, or a copy of them where the unprivileged user may not go, which a home often is."""
    try:
        if user is None or subprocess.run([os.path.join(bin_dir, "initdb"), "--version"], user=user, cwd="/",
                                          capture_output=True, check=False).returncode == 0:
            return bin_dir
    except PermissionError:
        pass
    # Libraries are found beside the package.
    package, copy = os.path.dirname(os.path.dirname(bin_dir)), os.path.join(root, "installed")
    for part in (package, package + ".libs"):
        there = os.path.join(copy, os.path.basename(part))
        if not os.path.exists(there):
            shutil.copytree(part, there, symlinks=True)
    return os.path.join(copy, os.path.basename(package), os.path.relpath(bin_dir, package))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_ready(data: str, pid: int) -> bool:
    try:
        with open(os.path.join(data, "postmaster.pid"), encoding="utf-8") as lines:
            said = [line.strip() for line in lines]
    except FileNotFoundError:
        return False
    # The file of a server that was killed has another pid.
    return said[0] == str(pid) and said[-1] in ("ready", "standby")


def main() -> None:
    root, parent = sys.argv[1], int(sys.argv[2])
    # Postgres refuses to run as root.
    user = "nobody" if os.getuid() == 0 else None
    bin_dir = binaries(root, user)
    data, url_file = os.path.join(root, "data"), os.path.join(root, "url")
    port_file = os.path.join(root, "port")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment["LC_ALL"] = "C"
    primary_file = os.path.join(root, "primary")
    if not os.path.exists(data):
        os.makedirs(data, mode=0o700)
        if user:
            shutil.chown(data, user)
    if not os.listdir(data) and os.path.exists(primary_file):
        with open(primary_file, encoding="ascii") as named:
            primary = named.read() + "?application_name=standby"
        made = subprocess.run(
            [os.path.join(bin_dir, "pg_basebackup"), "--dbname", primary, "--pgdata", data, "--write-recovery-conf",
             "--checkpoint=fast", "--no-sync"],
            env=environment, user=user, cwd="/", capture_output=True, text=True, check=False)
        if made.returncode:
            sys.exit(made.stderr)
    elif not os.listdir(data):
        with open(os.path.join(root, "password"), "w", encoding="ascii") as out:
            out.write(PASSWORD)
        made = subprocess.run(
            [os.path.join(bin_dir, "initdb"), "--pgdata", data, "--username", "nimbus", "--auth", "scram-sha-256",
             "--pwfile", os.path.join(root, "password"), "--encoding", "UTF8", "--no-sync"],
            env=environment, user=user, cwd="/", capture_output=True, text=True, check=False)
        if made.returncode:
            sys.exit(made.stderr)
    port = free_port()
    if os.path.exists(port_file):
        with open(port_file, encoding="ascii") as known:
            port = int(known.read())
    options = []
    tls = [os.path.join(root, name) for name in ("tls.crt", "tls.key")]
    if os.path.exists(tls[0]):
        for path in tls if user else []:
            shutil.chown(path, user)
        os.chmod(tls[1], 0o600)
        options = ["-c", "ssl=on", "-c", "ssl_cert_file=" + tls[0], "-c", "ssl_key_file=" + tls[1]]
    log = open(os.path.join(root, "log"), "ab")

    def launch() -> subprocess.Popen:
        return subprocess.Popen(
            [os.path.join(bin_dir, "postgres"), "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
             *options, "-c", "unix_socket_directories=", "-c", "max_connections=300", "-c", "max_locks_per_transaction=256"],
            env=environment, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True)

    server = launch()
    # The immediate shutdown: nothing here is kept.
    signal.signal(signal.SIGTERM, lambda *_: server.send_signal(signal.SIGQUIT))
    # The processes of one that was killed hold its memory for a moment.
    tries = 50
    while not is_ready(data, server.pid):
        if server.poll() is not None:
            tries -= 1
            if not tries:
                with open(os.path.join(root, "log"), encoding="utf-8", errors="replace") as lines:
                    sys.exit("postgres did not start: " + lines.read()[-2000:])
            time.sleep(0.2)
            server = launch()
        time.sleep(0.05)
    with open(port_file, "w", encoding="ascii") as out:
        out.write(str(port))
    quoted = PASSWORD.replace("@", "%40").replace(":", "%3A").replace("/", "%2F")
    with open(url_file + ".new", "w", encoding="ascii") as out:
        out.write(f"postgres://nimbus:{quoted}@127.0.0.1:{port}/postgres")
    os.replace(url_file + ".new", url_file)
    while server.poll() is None:
        # Killed or gone: nobody else would end it.
        if os.getppid() != parent:
            server.send_signal(signal.SIGQUIT)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
