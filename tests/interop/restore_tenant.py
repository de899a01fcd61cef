"""Takes a tenant out of a backup repository with no Nimbus code, as docs/backup-format.md describes it.

    python restore_tenant.py --key master.key --repository repo --tenant demo --out demo.sqlite3 [--snapshot 3]

The repository is a directory (of a bucket, `aws s3 sync` makes one). Writes the database and its manifest; open_tenant.py opens them.
Everything is proven first: the MAC of the catalogue under the control file's data key, and by it every byte. Needs `cryptography` from
PyPI. Exit codes: 0 done, 1 refused (the reason is on stderr).
"""

import argparse
import base64
import hashlib
import hmac
import json
import pathlib
import struct
import sys

import nimbus_enc
from nimbus_enc import Refused

PAGE = 4096
MAGIC = b"nimbus-pages/1\n"
ENTRY = struct.Struct(">I32s")


def main():
    parser = argparse.ArgumentParser(description="Take a tenant out of a Nimbus backup with no Nimbus code.")
    parser.add_argument("--key", type=pathlib.Path, required=True, help="the master key file")
    parser.add_argument("--repository", type=pathlib.Path, required=True)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--snapshot", type=int, help="default: the newest that holds the tenant")
    options = parser.parse_args()
    try:
        key = options.key.read_bytes()
        identifier = read_beginning(options.repository)
        entry = find(options.repository, identifier, key, options.tenant, options.snapshot)
        manifest = read_manifest(options.repository, entry)
        database = assemble(options.repository, entry)
        options.out.write_bytes(database)
        options.out.with_name(options.out.name + ".nimbus-enc").write_bytes(manifest)
    except (OSError, ValueError, KeyError, Refused) as error:
        sys.exit(f"restore_tenant: {error}")


def read_beginning(repository):
    lines = (repository / "nimbus-repository").read_text("ascii").splitlines()
    if lines[0] != "nimbus-repository/1":
        raise Refused(f"{repository} is {lines[0]}, and this reads nimbus-repository/1")
    return lines[1].removeprefix("id: ")


def find(repository, identifier, key, tenant, number):
    """The tenant's entry in a catalogue whose MAC is right."""
    numbers = [number] if number else sorted((int(path.name) for path in (repository / "snapshots").iterdir()), reverse=True)
    for candidate in numbers:
        catalogue = read_catalogue(repository, identifier, key, candidate)
        for entry in catalogue["tenants"]:
            if entry["subject"].split(":")[3] == tenant and entry["missing"] is None:
                return entry
    raise Refused(f"no snapshot holds the tenant {tenant}")


def read_catalogue(repository, identifier, key, number):
    text = (repository / "snapshots" / f"{number:010}").read_bytes()
    header, body, seal, end = text.split(b"\n")
    if header != b"nimbus-snapshot/1" or end != b"":
        raise Refused(f"snapshot {number} is no nimbus-snapshot/1")
    catalogue = json.loads(body)
    word, file_id, dek_id, mac = seal.decode("ascii").split(" ")
    control = catalogue["control"]
    if word != "mac:" or (file_id, dek_id) != (control["file_id"], control["dek_id"]):
        raise Refused(f"snapshot {number} is sealed by another than its control file")
    if catalogue["number"] != number or catalogue["repository"] != identifier:
        raise Refused(f"snapshot {number} was put there")
    manifest = nimbus_enc.parse(read_manifest(repository, control))
    dek = nimbus_enc.unwrap(manifest, manifest.deks[0], key)
    manifest.verify(dek)
    sealed = text[: -len(mac) - 1]
    expected = hmac.new(manifest.derive(dek, "archive"), sealed, hashlib.sha256).digest()
    if not hmac.compare_digest(expected, base64.b64decode(mac, validate=True)):
        raise Refused(f"snapshot {number} has a wrong MAC")
    return catalogue


def read_manifest(repository, entry):
    """The manifest of an entry. It has a MAC of its own, under the data key that it holds."""
    return (repository / "keys" / entry["file_id"] / entry["dek_id"] / entry["manifest"]).read_bytes()


def assemble(repository, entry):
    """The file of an entry: its runs one over the other, cut to its length."""
    count = -(-entry["bytes"] // PAGE)
    pages = {}
    for run in entry["runs"]:
        with (repository / run["object"]).open("rb") as file:
            file.seek(run["offset"])
            span = file.read(run["bytes"])
        if hashlib.sha256(span).hexdigest() != run["sha256"]:
            raise Refused(f"{run['object']} is damaged")
        if not span.startswith(MAGIC):
            raise Refused(f"{run['object']} holds no pages")
        (held,) = struct.unpack_from(">I", span, len(MAGIC))
        index = len(MAGIC) + 4
        first = index + held * ENTRY.size
        if len(span) != first + held * PAGE:
            raise Refused(f"{run['object']} has another length than its index says")
        for place in range(held):
            number, _version = ENTRY.unpack_from(span, index + place * ENTRY.size)
            pages[number] = span[first + place * PAGE : first + (place + 1) * PAGE]
    missing = [number for number in range(1, count + 1) if number not in pages]
    if missing:
        raise Refused(f"no object holds page {missing[0]}")
    return b"".join(pages[number] for number in range(1, count + 1))[: entry["bytes"]]


if __name__ == "__main__":
    main()
