"""Opens a tenant with no Nimbus code: from the master key file, the manifest and the database alone.

    python open_tenant.py --key master.key --database demo.sqlite3 [--manifest demo.sqlite3.nimbus-enc]

Prints every document as one JSON line, {"table": …, "document": …}, as the server would give it. The database is opened read-only.
Needs `cryptography` and `sqlcipher3-wheels` from PyPI. Exit codes: 0 done, 1 refused (the reason is on stderr).
"""

import argparse
import json
import pathlib
import sys
import uuid

import sqlcipher3

import nimbus_enc


def main():
    parser = argparse.ArgumentParser(description="Open a Nimbus tenant with no Nimbus code.")
    parser.add_argument("--key", type=pathlib.Path, required=True, help="the master key file, or the file of a key directory")
    parser.add_argument("--database", type=pathlib.Path, required=True)
    parser.add_argument("--manifest", type=pathlib.Path, help="default: the database's name with .nimbus-enc")
    options = parser.parse_args()
    try:
        manifest = read_manifest(options.manifest, options.database)
        key = options.key.read_bytes()
        if len(key) != 32:
            raise nimbus_enc.Refused(f"{options.key}: a key is 32 bytes, not {len(key)}")
        deks = [nimbus_enc.unwrap(manifest, dek, key) for dek in manifest.deks]
        manifest.verify(deks[0])
        dump(options.database, manifest, deks)
    except (OSError, nimbus_enc.Refused, sqlcipher3.Error) as error:
        sys.exit(f"open_tenant: {error}")


def read_manifest(path, database):
    path = path or database.with_name(database.name + ".nimbus-enc")
    with path.open("rb") as file:
        return nimbus_enc.parse(file.read(nimbus_enc.MAX_BYTES + 1))


def dump(database, manifest, deks):
    """Prints the rows under the first of `deks` that opens the file (while it is rekeyed there are two)."""
    if manifest.cipher != "sqlcipher4":
        raise nimbus_enc.Refused(f"{database} is {manifest.cipher}, not a SQLCipher database")
    connection = next((c for c in (connect(database, manifest.derive(dek, "data")) for dek in deks) if c), None)
    if connection is None:
        raise nimbus_enc.Refused(f"{database} does not open under its manifest's key")
    for table, document in documents(connection):
        print(json.dumps({"table": table, "document": document}, ensure_ascii=False))
    connection.close()


def documents(connection):
    """The documents of every table, in the order of insertion."""
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout not in (1, 2, 3, 4, 5, 6):
        raise nimbus_enc.Refused(f"this reads layouts 1 to 6 of a tenant's tables; the file has {layout}")
    # Nimbus gives older files their versions when it opens them.
    version = "ifnull(version, seq)" if layout >= 4 else "seq"
    tables = connection.execute("SELECT number, name FROM nimbus_tables ORDER BY name").fetchall()
    for number, table in tables:
        rows = connection.execute(f"SELECT id, created, updated, {version}, json(fields) FROM documents_{number:d} ORDER BY seq")
        for identifier, created, updated, version_found, fields in rows:
            own = {"_creationTime": created, "_updateTime": updated, "_version": version_found}
            yield table, {"_id": str(uuid.UUID(bytes=identifier)), **own, **json.loads(fields)}


def connect(database, key):
    """A read-only connection, or None where the key does not fit (page 1 authenticates or it does not)."""
    connection = sqlcipher3.connect(database.resolve(strict=True).as_uri() + "?mode=ro", uri=True)
    connection.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlcipher3.DatabaseError as error:
        connection.close()
        if "not a database" in str(error):
            return None
        raise
    return connection


if __name__ == "__main__":
    main()
