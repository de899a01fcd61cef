"""Runs a Postgres of its own as an unprivileged user, for scripts/test and for tests that end it.

    python3 scripts/test-postgres.py DIR PARENT_PID

Makes a cluster in DIR where there is none, starts it on a free loopback port (on the port of last time, where there was
one), writes its URL to DIR/url once it takes connections, and ends it when PARENT_PID is gone or at SIGTERM: a test run
that was killed leaves no server behind.
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


def binaries() -> str:
    # Where Debian puts it, which is not in PATH.
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [shutil.which("initdb")]
    if not found[-1]:
        sys.exit("initdb is missing. Debian, Ubuntu: apt-get install postgresql-15")
    return os.path.dirname(os.path.realpath(found[-1]))


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
    return said[0] == str(pid) and said[-1] == "ready"


def main() -> None:
    root, parent = sys.argv[1], int(sys.argv[2])
    bin_dir = binaries()
    # Postgres refuses to run as root.
    user = "nobody" if os.getuid() == 0 else None
    data, url_file = os.path.join(root, "data"), os.path.join(root, "url")
    port_file = os.path.join(root, "port")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment["LC_ALL"] = "C"
    if not os.path.exists(data):
        os.makedirs(data, mode=0o700)
        if user:
            shutil.chown(data, user)
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
    log = open(os.path.join(root, "log"), "ab")

    def launch() -> subprocess.Popen:
        return subprocess.Popen(
            [os.path.join(bin_dir, "postgres"), "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
             "-c", "unix_socket_directories=", "-c", "max_connections=300", "-c", "max_locks_per_transaction=256"],
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
