"""Opens a manifest's recovery wrap with stock `age` and an identity from the safe, and with it the database.

    python unwrap_recovery.py --identity recovery.txt --database demo.sqlite3 [--manifest demo.sqlite3.nimbus-enc]

No key of the running system takes part. Prints the documents as open_tenant.py does. Needs `age` and `age-keygen` on the PATH.
Exit codes: 0 done, 1 refused (the reason is on stderr).
"""

import argparse
import pathlib
import subprocess
import sys

import sqlcipher3

import nimbus_enc
import open_tenant


def main():
    parser = argparse.ArgumentParser(description="Open a Nimbus tenant with a recovery identity and stock age.")
    parser.add_argument("--identity", type=pathlib.Path, required=True, help="what age-keygen wrote")
    parser.add_argument("--database", type=pathlib.Path, required=True)
    parser.add_argument("--manifest", type=pathlib.Path, help="default: the database's name with .nimbus-enc")
    options = parser.parse_args()
    try:
        manifest = open_tenant.read_manifest(options.manifest, options.database)
        recipients = age("age-keygen", "-y", options.identity).decode("ascii").split()
        deks = [recover(manifest, dek, options.identity, recipients) for dek in manifest.deks]
        manifest.verify(deks[0])
        open_tenant.dump(options.database, manifest, deks)
    except (OSError, nimbus_enc.Refused, sqlcipher3.Error) as error:
        sys.exit(f"unwrap_recovery: {error}")


def recover(manifest, dek, identity, recipients):
    for wrap in dek.wraps:
        if wrap.provider == "age" and wrap.key_id in recipients:
            opened = age("age", "--decrypt", "--identity", identity, given=wrap.blob)
            return nimbus_enc.open_recovery(manifest, dek, wrap, opened)
    held = ", ".join(wrap.key_id for wrap in dek.wraps if wrap.provider == "age") or "no recipient"
    raise nimbus_enc.Refused(f"dek {dek.id} can be recovered by {held}; this identity is {', '.join(recipients)}")


def age(*command, given=None):
    done = subprocess.run([str(word) for word in command], input=given, capture_output=True, check=False)
    if done.returncode != 0:
        raise nimbus_enc.Refused(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
