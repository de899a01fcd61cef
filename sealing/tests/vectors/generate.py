"""Makes the test vectors of docs/sealed-format.md, with no Nimbus code.

    python generate.py            writes sealed.json
    python generate.py --check    says whether the file in the tree is another than would be written

Needs Python 3.9 and `cryptography`. Everything is fixed, so every run writes the same bytes. Of the second reader in
tests/interop it takes HKDF and nothing that knows the format.
"""

import hashlib
import hmac
import json
import pathlib
import struct
import sys
import uuid

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tests" / "interop"))
from nimbus_enc import hkdf  # noqa: E402

SUBJECT = "db:external:tenant:demo:documents"
FILE_ID = "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10"
DEK_ID = bytes.fromhex("4f1c0a9be2d35577")
DOCUMENT = bytes.fromhex("0198f2c47d107c3e8b1de3a6a0c4f582")
HUGE = "x" * 5000


def fixed(label, length=32):
    """Bytes that look random and are the same in every run."""
    return hashlib.shake_256(label.encode()).digest(length)


DEK = fixed("dek of demo")
SALT = uuid.UUID(FILE_ID).bytes
SEAL_KEY = hkdf(DEK, SALT, b"nimbus-enc/1 seal", 32)
BLIND_KEY = hkdf(DEK, SALT, b"nimbus-enc/1 blind", 32)


def sha256_mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def lengths(row):
    for part in row:
        if part is None:
            yield b"\xff" * 4
        elif isinstance(part, int):
            yield b"\0\0\0\x08" + part.to_bytes(8, "big", signed=True)
        else:
            yield struct.pack(">I", len(part)) + part


def context(column, row):
    head = [SUBJECT.encode(), FILE_ID.encode(), column.encode()]
    return b"nimbus-sealed/1 context" + b"".join(lengths(head + row))


def size_class(length):
    """Padmé as in the paper (Nikitin et al., 2019, section 4), of the content and the byte 80, from 256 on."""
    length = max(length + 1, 256)
    exponent = length.bit_length() - 1
    bits = exponent.bit_length()
    low = exponent - bits
    return ((length + (1 << low) - 1) >> low) << low


def seal(column, row, content, salt):
    material = hkdf(SEAL_KEY, salt, b"nimbus-sealed/1 value", 64)
    padded = content + b"\x80"
    padded += bytes(size_class(len(content)) - len(padded))
    head = b"\x01" + DEK_ID
    sealed = ChaCha20Poly1305(material[:32]).encrypt(bytes(12), padded, head + context(column, row))
    return head + salt + material[32:] + sealed


def shown(row):
    """A row as JSON: bytes in hex."""
    return [part.hex() if isinstance(part, bytes) else part for part in row]


def value(what, column, row, content, found=False):
    salt = fixed(f"salt {what}")
    if found:
        bound = context(column, [])
        salt = sha256_mac(BLIND_KEY, b"nimbus-sealed/1 salt" + len(bound).to_bytes(8, "big") + bound + content)
    return {
        "what": what,
        "column": column,
        "row": shown(row),
        "content": content.hex(),
        "findable": found,
        "salt": salt.hex(),
        "context": context(column, row).hex(),
        "blob": seal(column, row, content, salt).hex(),
    }


def record(row):
    bound = context("journal.mac", row)
    return {"column": "journal.mac", "row": shown(row), "mac": sha256_mac(BLIND_KEY, b"nimbus-sealed/1 record" + bound).hex()}


def blind(table, path, what, value_bytes):
    key = sha256_mac(BLIND_KEY, b"nimbus-sealed/1 field" + b"".join(lengths([name.encode() for name in [table, *path]])))
    return {"table": table, "path": path, "what": what, "value": value_bytes.hex(), "entry": sha256_mac(key, value_bytes)[:16].hex()}


def number(double, left=0):
    bits = struct.unpack(">Q", struct.pack(">d", double))[0]
    bits = bits | 1 << 63 if bits >> 63 == 0 else ~bits & (1 << 64) - 1
    return b"\x03" + bits.to_bytes(8, "big") + (left & 0xFFFF ^ 0x8000).to_bytes(2, "big")


def text(content):
    return b"\x04" + content.encode().replace(b"\0", b"\0\xff") + b"\0\x01"


def vectors():
    row = [b"places", 7, DOCUMENT, 9, 1764439445000, 1764439450000]
    refused = []
    good = seal("documents.fields", row, b'{"n":1}', fixed("salt of refused"))

    def refuse(what, blob, error, column="documents.fields", to=None):
        refused.append({"what": what, "column": column, "row": shown(to or row), "blob": blob.hex(), "error": error})

    for place, name in [(0, "version"), (9, "salt"), (41, "commitment"), (73, "ciphertext"), (len(good) - 1, "tag")]:
        changed = bytearray(good)
        changed[place] ^= 1
        refuse(f"a bit of the {name}", bytes(changed), "malformed" if name == "version" else "forged")
    refuse("another data key", good[:1] + bytes(8) + good[9:], "other-key")
    refuse("cut", good[:80], "malformed")
    refuse("another column", good, "forged", column="jobs.mutation")
    others = [b"other", 8, bytes(16), 8, 1764439445001, 1764439450001]
    for place, (name, other) in enumerate(zip(["table", "number", "id", "version", "creation", "update"], others)):
        refuse(f"another {name}", good, "forged", to=[*row[:place], other, *row[place + 1 :]])
    unpadded = fixed("salt unpadded")
    material = hkdf(SEAL_KEY, unpadded, b"nimbus-sealed/1 value", 64)
    head = b"\x01" + DEK_ID
    bare = ChaCha20Poly1305(material[:32]).encrypt(bytes(12), bytes(256), head + context("documents.fields", row))
    refuse("no padding", head + unpadded + material[32:] + bare, "malformed")
    return {
        "subject": SUBJECT,
        "file_id": FILE_ID,
        "dek_id": DEK_ID.hex(),
        "dek": DEK.hex(),
        "seal_key": SEAL_KEY.hex(),
        "blind_key": BLIND_KEY.hex(),
        "values": [
            value("a document", "documents.fields", row, b'{"name":"Z\xc3\xbcrich","n":9007199254740993}'),
            value("an empty one", "documents.fields", row, b"{}"),
            value("the most of the least class", "documents.fields", row, b"x" * 255),
            value("one more", "documents.fields", row, b"x" * 256),
            value("a large one", "documents.fields", row, HUGE.encode()),
            value("content that ends as padding does", "documents.fields", row, b"{}\x80\0\0"),
            value("a job", "jobs.mutation", [DOCUMENT, -1], b'{"kind":"delete"}'),
            value("a cron that never ran", "crons.mutation", [b"nightly", 0, 1, 2, None, None], b"{}"),
            value("a path", "files.path", [], b"index.html", found=True),
            value("a hash", "contents.sha", [], fixed("content"), found=True),
        ],
        "refused": refused,
        "macs": [record([9, 2, b"places", DOCUMENT, 1764439450000]), record([10, 3, b"places", DOCUMENT, 1764439460000])],
        "blind": [
            blind("places", ["name"], "null", b"\x01"),
            blind("places", ["name"], "missing", b"\0"),
            blind("places", ["name"], "true", b"\x02\x01"),
            blind("places", ["name"], "1", number(1.0)),
            blind("places", ["n"], "1", number(1.0)),
            blind("other", ["n"], "1", number(1.0)),
            blind("places", ["n"], "9007199254740993", number(9007199254740992.0, 1)),
            blind("places", ["name"], "text", text("Z\u00fcrich")),
            blind("places", ["a", "b"], "text with a zero", text("a\0b")),
            blind("places", ["a.b"], "text with a zero", text("a\0b")),
            blind("places", ["name"], "a long text", text(HUGE)),
        ],
    }


def main():
    written = json.dumps(vectors(), indent=1) + "\n"
    path = HERE / "sealed.json"
    if "--check" in sys.argv[1:]:
        if path.read_text("ascii") != written:
            sys.exit(f"{path} is another than generate.py makes")
        return
    path.write_text(written, "ascii")


if __name__ == "__main__":
    main()
