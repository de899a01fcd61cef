"""Runs a PgBouncer of its own in transaction mode as an unprivileged user, for scripts/test.

    python3 scripts/test-pgbouncer.py POSTGRES_URL DIR PARENT_PID

Starts it on a free loopback port in front of the Postgres of the URL, writes its own URL to DIR/url once it takes
connections, and ends it when PARENT_PID is gone or at SIGTERM.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    upstream, root, parent = urllib.parse.urlsplit(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        sys.exit("pgbouncer is missing. Debian, Ubuntu: apt-get install pgbouncer")
    user = "nobody" if os.getuid() == 0 else None
    port = free_port()
    password = urllib.parse.unquote(upstream.password)
    users, settings = os.path.join(root, "users"), os.path.join(root, "pgbouncer.ini")
    with open(users, "w", encoding="ascii") as out:
        out.write(f'"{upstream.username}" "{password}"\n')
    # Few connections to Postgres, so that transactions of one client seldom have the same one twice.
    with open(settings, "w", encoding="ascii") as out:
        out.write(f"""[databases]
* = host={upstream.hostname} port={upstream.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = 40
max_client_conn = 2000
log_connections = 0
log_disconnections = 0
""")
    if user:
        shutil.chown(users, user)
    os.chmod(users, 0o600)
    with open(os.path.join(root, "log"), "ab") as log:
        bouncer = subprocess.Popen([program, settings], user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=log, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: bouncer.send_signal(signal.SIGTERM))
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            break
        except OSError:
            if bouncer.poll() is not None:
                with open(os.path.join(root, "log"), encoding="utf-8", errors="replace") as lines:
                    sys.exit("pgbouncer did not start: " + lines.read()[-2000:])
            time.sleep(0.05)
    url_file = os.path.join(root, "url")
    with open(url_file + ".new", "w", encoding="ascii") as out:
        out.write(upstream._replace(netloc=f"{upstream.netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl())
    os.replace(url_file + ".new", url_file)
    while bouncer.poll() is None:
        if os.getppid() != parent:
            bouncer.send_signal(signal.SIGTERM)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
