"""Runs moto (a KMS over the wire) on a free loopback port, for scripts/test.

    python scripts/test-moto.py DIR PARENT_PID

Writes its URL to DIR/url once it accepts connections, and ends by itself when PARENT_PID is gone: a test run that was
killed leaves no server behind.
"""

import logging
import os
import sys
import time

from moto.server import ThreadedMotoServer


def main() -> None:
    url_file, parent = os.path.join(sys.argv[1], "url"), int(sys.argv[2])
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with open(url_file + ".new", "w", encoding="ascii") as out:
        out.write(f"http://{host}:{port}")
    os.replace(url_file + ".new", url_file)
    while os.getppid() == parent:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
