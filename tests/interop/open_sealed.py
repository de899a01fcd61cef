"""Opens the documents of a sealed tenant with no Nimbus code: from the master key file and what the database has.

    python open_sealed.py --key master.key < rows.json

The rows are JSON: {"manifest": text, "documents": [{"table", "seq", "id", "version", "created", "updated", "fields"}]}, bytes in hex, as
`SELECT` gives them (docs/sealed-format.md). Prints every document as one JSON line, {"table": …, "document": …}. Needs `cryptography` from
PyPI. Exit codes: 0 done, 1 refused (the reason is on stderr).
"""

import argparse
import json
import pathlib
import sys
import uuid

import nimbus_enc
from nimbus_sealed import Tenant


def main():
    parser = argparse.ArgumentParser(description="Open a sealed Nimbus tenant with no Nimbus code.")
    parser.add_argument("--key", type=pathlib.Path, required=True, help="the master key file, or the file of a key directory")
    options = parser.parse_args()
    rows = json.load(sys.stdin)
    try:
        manifest = nimbus_enc.parse(bytes.fromhex(rows["manifest"]))
        dek = nimbus_enc.unwrap(manifest, manifest.deks[0], options.key.read_bytes())
        manifest.verify(dek)
        tenant = Tenant(manifest, dek)
        for row in rows["documents"]:
            identifier = bytes.fromhex(row["id"])
            bound = [row["table"].encode(), row["seq"], identifier, row["version"], row["created"], row["updated"]]
            fields = tenant.open("documents.fields", bound, bytes.fromhex(row["fields"]))
            own = {"_creationTime": row["created"], "_updateTime": row["updated"], "_version": row["version"]}
            document = {"_id": str(uuid.UUID(bytes=identifier)), **own, **json.loads(fields)}
            print(json.dumps({"table": row["table"], "document": document}, ensure_ascii=False))
    except (OSError, nimbus_enc.Refused) as error:
        sys.exit(f"open_sealed: {error}")


if __name__ == "__main__":
    main()
