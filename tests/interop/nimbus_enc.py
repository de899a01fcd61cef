"""The `.nimbus-enc` manifest, format 1: a second reader, written from docs/manifest-format.md and sharing no code
with Nimbus. Needs Python 3.9 and `cryptography`.
"""

import base64
import binascii
import datetime
import hashlib
import hmac
import re
import struct
import uuid
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAX_BYTES = 32 * 1024
MAX_LINE = 1024
MAX_WRAPS = 8
MAX_DEKS = 2
MAX_BLOB = 8 * 1024
BASE64_LINE = 64

_TENANT = r"[a-z0-9][a-z0-9_-]{0,47}"
_FILE = r"(?!\.{1,2}\Z)[!-.0-9;-\[\]-~]{1,255}"  # printable ASCII without `/`, `:`, `\` and space; not `.` or `..`
_SUBJECT = re.compile(
    rf"db:sqlite:tenant:{_TENANT}:{_FILE}|db:redb:control:{_FILE}|db:external:tenant:{_TENANT}:{_FILE}|cache:libsql:tenant:{_TENANT}:{_FILE}"
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_DEK_ID = re.compile(r"[0-9a-f]{16}")
_LOCAL_KEY = re.compile("[0-9a-f]{16}")
_KEY_IDS = {
    "master-key-file": _LOCAL_KEY,
    "key-dir": _LOCAL_KEY,
    "aws-kms": re.compile("arn:[!-~]{0,508}"),
    "age": re.compile("age1[0-9a-z]{0,508}"),
}
_ALGORITHMS = {
    "master-key-file": {"hkdf-sha256+aes-256-gcm", "hkdf-sha256+xchacha20-poly1305"},
    "key-dir": {"hkdf-sha256+aes-256-gcm", "hkdf-sha256+xchacha20-poly1305"},
    "aws-kms": {"symmetric-default"},
    "age": {"x25519"},
}


class Refused(Exception):
    """The manifest, a key or a wrap is not what it has to be; the message says which."""


@dataclass
class Wrap:
    provider: str
    key_id: str
    algorithm: str
    at: str
    blob: bytes


@dataclass
class Dek:
    id: str
    created: str
    wraps: list = field(default_factory=list)


@dataclass
class Manifest:
    subject: str
    file_id: uuid.UUID
    cipher: str
    state: str
    revision: int
    created: str
    deks: list
    mac: bytes
    authenticated: bytes

    def context(self, dek, wrap):
        """The bytes a wrapped key is bound to: HKDF info and associated data at once."""
        parts = (self.subject, str(self.file_id), self.cipher, dek.id, wrap.provider, wrap.key_id)
        encoded = [part.encode("ascii") for part in parts]
        return b"nimbus-enc/1 wrap" + b"".join(struct.pack(">I", len(part)) + part for part in encoded)

    def derive(self, dek_bytes, purpose):
        """A key for `purpose` (data, manifest or archive), from the DEK and the file's identity."""
        return hkdf(dek_bytes, self.file_id.bytes, f"nimbus-enc/1 {purpose}".encode("ascii"), 32)

    def verify(self, dek_bytes):
        """Checks the manifest's MAC under its first DEK."""
        expected = hmac.digest(self.derive(dek_bytes, "manifest"), self.authenticated, "sha256")
        if not hmac.compare_digest(expected, self.mac):
            raise Refused("the manifest's mac does not match: it was edited, or this is another file's key")


def parse(text):
    """Reads a manifest, strictly: whatever is not the one spelling of its content is refused."""
    if len(text) > MAX_BYTES:
        raise Refused(f"longer than {MAX_BYTES} bytes")
    try:
        lines = text.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Refused("not ASCII") from None
    if lines.pop() != "":
        raise Refused("the last line has no newline")
    if any(len(line) > MAX_LINE for line in lines):
        raise Refused(f"a line is longer than {MAX_LINE} bytes")
    lines.reverse()  # a stack, next line last

    if not lines or lines.pop() != "nimbus-enc/1":
        raise Refused("does not begin with nimbus-enc/1")
    subject = _field(lines, "subject", _SUBJECT)
    file_id = uuid.UUID(_field(lines, "file-id", _UUID))
    cipher = _field(lines, "cipher", re.compile("sqlcipher4|blocks1|sealed1"))
    state = _field(lines, "state", re.compile("new|ready|rekeying"))
    if cipher != {"db:redb": "blocks1", "db:external": "sealed1"}.get(subject[: subject.index(":", 3)], "sqlcipher4"):
        raise Refused(f"{subject} is not encrypted with {cipher}")
    revision = int(_field(lines, "revision", re.compile("[1-9][0-9]{0,18}")))
    if revision >= 2**63:
        raise Refused(f"revision {revision} is out of range")
    created = _time(_field(lines, "created", _TIME))
    deks = []
    while lines and lines[-1].startswith("dek: "):
        deks.append(_dek(lines))
    if len(deks) != (2 if state == "rekeying" else 1):
        raise Refused(f"{len(deks)} dek entries in state {state}")
    if len({dek.id for dek in deks}) != len(deks):
        raise Refused("two deks of one id")
    mac = _base64(_field(lines, "mac", re.compile("[A-Za-z0-9+/]{43}=")))
    if lines:
        raise Refused("something follows the mac")
    authenticated = text[: text.rindex(b"\nmac: ") + len(b"\nmac: ")]
    return Manifest(subject, file_id, cipher, state, revision, created, deks, mac, authenticated)


def _field(lines, name, pattern):
    line = lines.pop() if lines else ""
    if not line.startswith(name + ": "):
        raise Refused(f"expected the field {name}")
    value = line[len(name) + 2 :]
    if not pattern.fullmatch(value):
        raise Refused(f"{name} has no valid value: {value!r}")
    return value


def _dek(lines):
    words = lines.pop()[len("dek: ") :].split(" ")
    if len(words) != 2 or not _DEK_ID.fullmatch(words[0]) or not _TIME.fullmatch(words[1]):
        raise Refused(f"dek has no valid value: {' '.join(words)!r}")
    dek = Dek(words[0], _time(words[1]))
    while lines and lines[-1].startswith("wrap: "):
        dek.wraps.append(_wrap(lines))
    if not 1 <= len(dek.wraps) <= MAX_WRAPS:
        raise Refused(f"dek {dek.id} has {len(dek.wraps)} wraps")
    if len({(wrap.provider, wrap.key_id) for wrap in dek.wraps}) != len(dek.wraps):
        raise Refused(f"dek {dek.id} is wrapped twice by one key")
    return dek


def _wrap(lines):
    words = lines.pop()[len("wrap: ") :].split(" ")
    if len(words) != 4 or not all(words) or not _TIME.fullmatch(words[3]):
        raise Refused(f"wrap has no valid value: {' '.join(words)!r}")
    if words[2] not in _ALGORITHMS.get(words[0], ()):
        raise Refused(f"unknown provider or algorithm: {words[0]} {words[2]}")
    if not _KEY_IDS[words[0]].fullmatch(words[1]):
        raise Refused(f"{words[0]} has no key id {words[1]!r}")
    _time(words[3])
    encoded = []
    while lines and lines[-1].startswith(" "):
        encoded.append(lines.pop()[1:])
    if any(len(line) != BASE64_LINE for line in encoded[:-1]) or len(encoded[-1:][0] if encoded else "") > BASE64_LINE:
        raise Refused("a wrapped key is not 64 characters a line")
    blob = _base64("".join(encoded))
    if not 1 <= len(blob) <= MAX_BLOB:
        raise Refused(f"a wrapped key of {len(blob)} bytes")
    return Wrap(*words, blob)


def _time(text):
    """A second of the years 1970 to 9998, in UTC; the calendar's check comes after the spelling's."""
    try:
        year = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").year
    except ValueError:
        raise Refused(f"no such time: {text}") from None
    if not 1970 <= year <= 9998:
        raise Refused(f"out of range: {text}")
    return text


def _base64(text):
    try:
        value = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Refused("not base64") from None
    if base64.b64encode(value).decode("ascii") != text:
        raise Refused("not canonical base64")
    return value


def hkdf(key, salt, info, length):
    return HKDF(SHA256(), length, salt, info).derive(key)


def kek_id(key):
    """What the key of a master key file or a key directory is called in manifests."""
    return hkdf(key, None, b"nimbus-enc/1 kek id", 8).hex()


def unwrap(manifest, dek, key):
    """The bytes of `dek`, from the wrap that `key` (32 bytes of a local key file) made."""
    ours = kek_id(key)
    for wrap in dek.wraps:
        if wrap.provider in ("master-key-file", "key-dir") and wrap.key_id == ours:
            return _unwrap_local(key, wrap, manifest.context(dek, wrap))
    held = ", ".join(f"{wrap.provider} {wrap.key_id}" for wrap in dek.wraps)
    raise Refused(f"this key is {ours}; dek {dek.id} is wrapped for {held}")


def _unwrap_local(key, wrap, context):
    if len(wrap.blob) != 32 + 32 + 16:
        raise Refused(f"a wrapped key of {len(wrap.blob)} bytes")
    salt, sealed = wrap.blob[:32], wrap.blob[32:]
    extended = wrap.algorithm == "hkdf-sha256+xchacha20-poly1305"
    material = hkdf(key, salt, context, 32 + (24 if extended else 12))
    opened = xchacha20_poly1305_open if extended else (lambda k, n, c, a: AESGCM(k).decrypt(n, c, a))
    try:
        return opened(material[:32], material[32:], sealed, context)
    except InvalidTag:
        raise Refused("the wrapped key does not authenticate") from None


def open_recovery(manifest, dek, wrap, plaintext):
    """The bytes of `dek`, from what `age -d` made of a recovery wrap: SHA-256(context), then the DEK."""
    if len(plaintext) != 64:
        raise Refused(f"a recovery wrap holds 64 bytes, not {len(plaintext)}")
    if not hmac.compare_digest(plaintext[:32], hashlib.sha256(manifest.context(dek, wrap)).digest()):
        raise Refused("this recovery wrap was made for another file")
    return plaintext[32:]


def xchacha20_poly1305_open(key, nonce, sealed, associated):
    """draft-irtf-cfrg-xchacha: a subkey from HChaCha20, then ChaCha20-Poly1305 with the nonce's rest."""
    subkey = hchacha20(key, nonce[:16])
    return ChaCha20Poly1305(subkey).decrypt(b"\0\0\0\0" + nonce[16:], sealed, associated)


def hchacha20(key, nonce):
    state = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))

    def quarter(a, b, c, d):
        for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            mixed = state[z] ^ state[x]
            state[z] = (mixed << bits | mixed >> (32 - bits)) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for column in range(4):
            quarter(column, (column + 1) % 4 + 4, (column + 2) % 4 + 8, (column + 3) % 4 + 12)
    return struct.pack("<8I", *state[:4], *state[12:])
