"""Values that are sealed in a database, format 1: a reader written from docs/sealed-format.md, sharing no code with Nimbus.
Needs Python 3.9 and `cryptography`.
"""

import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from nimbus_enc import Refused, hkdf

OVERHEAD = 1 + 8 + 32 + 32 + 16
LEAST = 256
BLIND = 16


class Tenant:
    """A sealed tenant: its verified manifest, and the bytes of its data key."""

    def __init__(self, manifest, dek_bytes):
        if manifest.cipher != "sealed1":
            raise Refused(f"{manifest.subject} is {manifest.cipher}, and not sealed in a database")
        self.subject, self.file_id = manifest.subject, str(manifest.file_id)
        self.dek_id = bytes.fromhex(manifest.deks[0].id)
        self.seal_key = manifest.derive(dek_bytes, "seal")
        self.blind_key = manifest.derive(dek_bytes, "blind")

    def context(self, column, row):
        """What a value is bound to: its column, and other columns of its row (bytes, integers, None)."""
        return b"nimbus-sealed/1 context" + parts([self.subject.encode(), self.file_id.encode(), column.encode(), *row])

    def open(self, column, row, blob):
        """The content of a value."""
        if len(blob) < OVERHEAD or blob[0] != 1:
            raise Refused(f"{column} is not sealed")
        if blob[1:9] != self.dek_id:
            raise Refused(f"{column} is sealed under data key {blob[1:9].hex()}, the manifest has {self.dek_id.hex()}")
        salt, commitment, sealed = blob[9:41], blob[41:73], blob[73:]
        derived = hkdf(self.seal_key, salt, b"nimbus-sealed/1 value", 64)
        if not hmac.compare_digest(derived[32:], commitment):
            raise Refused(f"{column} is under another key")
        try:
            padded = ChaCha20Poly1305(derived[:32]).decrypt(bytes(12), sealed, blob[:9] + self.context(column, row))
        except InvalidTag:
            raise Refused(f"{column} was changed, or stands in another place") from None
        content = padded.rstrip(b"\0")
        if not content.endswith(b"\x80"):
            raise Refused(f"{column} has no padding")
        return content[:-1]

    def salt_of(self, column, content):
        """The salt of a value that is looked for."""
        context = self.context(column, [])
        return mac(self.blind_key, b"nimbus-sealed/1 salt" + struct.pack(">Q", len(context)) + context + content)

    def mac_of(self, column, row):
        """The MAC of a row that is in the clear."""
        return mac(self.blind_key, b"nimbus-sealed/1 record" + self.context(column, row))

    def blind(self, table, path, value):
        """The part of an index entry that one field makes, `value` being the bytes of docs/sealed-format.md."""
        field_key = mac(self.blind_key, b"nimbus-sealed/1 field" + parts([name.encode() for name in [table, *path]]))
        return mac(field_key, value)[:BLIND]


def parts(values):
    """Each after its length; integers have 8 bytes, and what is not there has a length of 2^32 - 1 alone."""
    out = b""
    for value in values:
        if value is None:
            out += b"\xff\xff\xff\xff"
            continue
        value = struct.pack(">q", value) if isinstance(value, int) else value
        out += struct.pack(">I", len(value)) + value
    return out


def padded_length(length):
    """The class of a size: Padmé, from 256 bytes on."""
    length = max(length + 1, LEAST)
    exponent = length.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (length + mask) & ~mask


def mac(key, message):
    return hmac.digest(key, message, "sha256")
