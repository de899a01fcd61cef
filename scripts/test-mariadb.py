"""Runs a MariaDB of its own as an unprivileged user, for scripts/test and for tests that end it.

    python3 scripts/test-mariadb.py INSTALLED DIR PARENT_PID [NODE]

INSTALLED is where scripts/test unpacked the packages. Makes a data directory in DIR where there is none, starts the
server on a free loopback port (on the port of last time, where there was one), writes its URL to DIR/url once it takes
connections, and ends it when PARENT_PID is gone or at SIGTERM: a test run that was killed leaves no server behind. With
DIR/tls.crt and DIR/tls.key it takes TLS alone.

NODE makes it a node of a Galera cluster: `first` begins one, a number joins it. The file DIR/../ports has a line for
each node: its ports for clients, replication, and transfers of what a node missed and of all. `log` has it write a
binary log instead.
"""

import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

PASSWORD = "p@ss:w/rd"
RIGHTS = "CREATE, DROP, INDEX, ALTER, SELECT, INSERT, UPDATE, DELETE, LOCK TABLES, SHOW VIEW, TRIGGER"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
            # The greeting, and no error: a node that joins has none.
            return probe.recv(5)[4:5] == b"\x0a"
    except OSError:
        return False


def usable(installed: str, root: str, user: str | None) -> str:
    """The installation, or a copy of it where the unprivileged user may not go, which a home often is."""
    server = os.path.join(installed, "usr/sbin/mariadbd")
    try:
        if user is None or subprocess.run([server, "--version"], user=user, cwd="/", capture_output=True,
                                          check=False).returncode in (0, 127):
            return installed
    except PermissionError:
        pass
    copy = os.path.join(root, "installed")
    if not os.path.exists(copy):
        shutil.copytree(installed, copy, symlinks=True)
    return copy


def main() -> None:
    installed, root, parent = os.path.abspath(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    node = sys.argv[4] if len(sys.argv) > 4 else None
    # Nothing of it needs to be root.
    user = "nobody" if os.getuid() == 0 else None
    installed = usable(installed, root, user)
    usr, data = os.path.join(installed, "usr"), os.path.join(root, "data")
    libraries = glob.glob(os.path.join(usr, "lib", "*-linux-gnu"))
    programs = [os.path.join(usr, "bin"), os.path.join(usr, "sbin")]
    environment = {"LC_ALL": "C", "HOME": root, "LD_LIBRARY_PATH": ":".join(libraries),
                   "PATH": ":".join([*programs, "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"])}
    if not os.path.exists(data):
        os.makedirs(data, mode=0o700)
        if user:
            shutil.chown(data, user)
        made = subprocess.run(
            ["bash", os.path.join(usr, "bin/mariadb-install-db"), "--no-defaults", "--basedir=" + usr,
             "--datadir=" + data, "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve",
             "--innodb-log-file-size=16M"],
            env=environment, user=user, cwd="/", capture_output=True, text=True, check=False)
        if made.returncode:
            sys.exit(made.stdout + made.stderr)
    port_file, url_file = os.path.join(root, "port"), os.path.join(root, "url")
    port = free_port()
    if os.path.exists(port_file):
        with open(port_file, encoding="ascii") as known:
            port = int(known.read())
    init = os.path.join(root, "init.sql")
    with open(init, "w", encoding="ascii") as out:
        out.write(f"CREATE USER IF NOT EXISTS nimbus@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
                  f"GRANT {RIGHTS} ON *.* TO nimbus@'127.0.0.1';\n")
    os.chmod(init, 0o644)
    options = ["--no-defaults", "--basedir=" + usr, "--datadir=" + data, "--socket=" + os.path.join(data, "sock"),
               "--pid-file=" + os.path.join(data, "pid"), "--plugin-dir=" + os.path.join(usr, "lib/mysql/plugin"),
               "--bind-address=127.0.0.1", "--skip-name-resolve", "--max-connections=300",
               "--innodb-log-file-size=16M", "--innodb-buffer-pool-size=96M", "--table-open-cache=4000",
               "--performance-schema=OFF"]
    if node == "log":
        options += ["--log-bin=binlog", "--binlog-format=ROW", "--server-id=1"]
    elif node is not None:
        with open(os.path.join(root, "..", "ports"), encoding="ascii") as known:
            ports = [line.split() for line in known]
        mine = ports[0 if node == "first" else int(node)]
        port = int(mine[0])
        members = [] if node == "first" else [f"127.0.0.1:{one[1]}" for one in ports if one != mine]
        options += [
            "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--wsrep-on=ON",
            "--wsrep-provider=" + os.path.join(usr, "lib/galera/libgalera_smm.so"),
            "--wsrep-cluster-name=nimbus", "--wsrep-cluster-address=gcomm://" + ",".join(members),
            f"--wsrep-node-address=127.0.0.1:{mine[1]}", f"--wsrep-node-incoming-address=127.0.0.1:{mine[0]}",
            "--wsrep-sst-method=rsync", f"--wsrep-sst-receive-address=127.0.0.1:{mine[3]}",
            "--wsrep-provider-options=gcache.size=64M;base_port=%s;gmcast.listen_addr=tcp://127.0.0.1:%s;"
            "ist.recv_addr=127.0.0.1:%s;evs.suspect_timeout=PT2S;evs.inactive_timeout=PT4S;evs.keepalive_period=PT0.5S;"
            "pc.recovery=false" % (mine[1], mine[1], mine[2])]
    # A node that joins gets its users from the others.
    if node in (None, "log", "first"):
        options.append("--init-file=" + init)
    tls = [os.path.join(root, name) for name in ("tls.crt", "tls.key")]
    if os.path.exists(tls[0]):
        for path in tls if user else []:
            shutil.chown(path, user)
        os.chmod(tls[1], 0o600)
        options += ["--ssl-cert=" + tls[0], "--ssl-key=" + tls[1], "--require-secure-transport=ON"]
    log = open(os.path.join(root, "log"), "ab")

    def launch() -> subprocess.Popen:
        return subprocess.Popen([os.path.join(usr, "sbin/mariadbd"), *options, f"--port={port}"],
                                env=environment, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True)

    server = launch()
    # Nothing here is kept.
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(server.pid, signal.SIGKILL))
    # The one that was killed holds its files for a moment.
    tries = 50
    while not answers(port):
        if server.poll() is not None:
            tries -= 1
            if not tries or node is not None:
                with open(os.path.join(root, "log"), encoding="utf-8", errors="replace") as lines:
                    sys.exit("mariadbd did not start: " + lines.read()[-4000:])
            time.sleep(0.2)
            server = launch()
        time.sleep(0.05)
    with open(port_file, "w", encoding="ascii") as out:
        out.write(str(port))
    with open(os.path.join(root, "server.pid"), "w", encoding="ascii") as out:
        out.write(str(server.pid))
    with open(os.path.join(root, "installation"), "w", encoding="utf-8") as out:
        out.write(installed)
    quoted = PASSWORD.replace("@", "%40").replace(":", "%3A").replace("/", "%2F")
    with open(url_file + ".new", "w", encoding="ascii") as out:
        out.write(f"mysql://nimbus:{quoted}@127.0.0.1:{port}?ssl-mode=disabled")
    os.replace(url_file + ".new", url_file)
    while server.poll() is None:
        # Killed or gone: nobody else would end it.
        if os.getppid() != parent:
            os.killpg(server.pid, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
