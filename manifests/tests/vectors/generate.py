"""Makes the test vectors of the `.nimbus-enc` format from docs/manifest-format.md, with no Nimbus code.

    python generate.py            writes them, and the seeds of the fuzz targets
    python generate.py --check    says which file in the tree is another than would be written

Needs Python 3.9 and `cryptography`. Everything is fixed, so every run writes the same bytes. Of the second reader in
tests/interop it takes the primitives (HKDF, HChaCha20) and nothing that knows the format.
"""

import base64
import calendar
import hashlib
import hmac
import json
import pathlib
import struct
import sys
import time

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tests" / "interop"))
from nimbus_enc import hchacha20, hkdf  # noqa: E402

AES = "hkdf-sha256+aes-256-gcm"
XCHACHA = "hkdf-sha256+xchacha20-poly1305"
SQLITE = "db:sqlite:tenant:demo:demo.sqlite3"
FILE_ID = "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10"
ARN = "arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-3333-4444-555555555555"
AT = "2026-11-22T18:04:05Z"
LATER = "2026-11-23T07:30:00Z"
FIRST, LAST = "1970-01-01T00:00:00Z", "9998-12-31T23:59:59Z"


def fixed(label, length=32):
    """Bytes that look random and are the same in every run."""
    blocks = (hashlib.sha256(f"{label} {number}".encode()).digest() for number in range(length // 32 + 1))
    return b"".join(blocks)[:length]


# --- wraps: each is its line's words, how it seals a DEK for a context, and what a test needs to open it


def local(provider, key, algorithm=AES, at=AT):
    """A wrap under 32 bytes of key; its salt is drawn from its name."""
    key_id = hkdf(key, None, b"nimbus-enc/1 kek id", 8).hex()

    def seal(dek, context):
        salt = fixed(f"salt {provider} {key_id} {context.hex()}")
        material = hkdf(key, salt, context, 32 + (12 if algorithm == AES else 24))
        if algorithm == AES:
            return salt + AESGCM(material[:32]).encrypt(material[32:], dek, context)
        subkey, nonce = hchacha20(material[:32], material[32:48]), bytes(4) + material[48:]
        return salt + ChaCha20Poly1305(subkey).encrypt(nonce, dek, context)

    return provider, key_id, algorithm, at, seal, {"kek": key.hex()}


def kms(key_id=ARN, size=184, at=AT):
    """What KMS gives back is opaque: any bytes stand for it."""
    return "aws-kms", key_id, "symmetric-default", at, lambda dek, context: fixed(f"kms {key_id}", size), {}


def age(label, at=AT):
    """An age file (age-encryption.org/v1) for one X25519 recipient."""
    secret = fixed(f"identity {label}")
    public = public_key(X25519PrivateKey.from_private_bytes(secret))
    recipient = bech32("age", public)

    def seal(dek, context):
        plaintext = hashlib.sha256(context).digest() + dek
        file_key, nonce = fixed(f"file key {recipient}", 16), fixed(f"nonce {recipient}", 16)
        ephemeral = X25519PrivateKey.from_private_bytes(fixed(f"ephemeral {recipient}"))
        share = public_key(ephemeral)
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
        wrap_key = hkdf(shared, share + public, b"age-encryption.org/v1/X25519", 32)
        body = ChaCha20Poly1305(wrap_key).encrypt(bytes(12), file_key, b"")
        head = f"age-encryption.org/v1\n-> X25519 {unpadded(share)}\n{unpadded(body)}\n---".encode()
        mac = hmac.digest(hkdf(file_key, None, b"header", 32), head, "sha256")
        payload = ChaCha20Poly1305(hkdf(file_key, nonce, b"payload", 32))
        return head + f" {unpadded(mac)}\n".encode() + nonce + payload.encrypt(bytes(11) + b"\1", plaintext, b"")

    return "age", recipient, "x25519", at, seal, {"identity": bech32("age-secret-key-", secret).upper()}


def public_key(secret):
    return secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def unpadded(data):
    return base64.b64encode(data).decode().rstrip("=")


def bech32(prefix, data):
    """BIP 173, without its limit on the length."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    values = [int(bits[at : at + 5], 2) for at in range(0, len(bits), 5)]
    expanded = [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]
    check = 1
    for value in expanded + values + [0] * 6:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    values += [(check ^ 1) >> 5 * (5 - at) & 31 for at in range(6)]
    return prefix + "1" + "".join("qpzry9x8gf2tvdw0s3jn54khce6mua7l"[value] for value in values)


# --- manifests


def dek(id, *wraps, at=AT):
    return id, at, wraps


def context_of(subject, file_id, cipher, dek_id, provider, key_id):
    parts = [part.encode() for part in (subject, file_id, cipher, dek_id, provider, key_id)]
    return b"nimbus-enc/1 wrap" + b"".join(struct.pack(">I", len(part)) + part for part in parts)


def derived(dek_bytes, file_id, purpose):
    return hkdf(dek_bytes, bytes.fromhex(file_id.replace("-", "")), f"nimbus-enc/1 {purpose}".encode(), 32)


def with_mac(head, key):
    """`head` ends with `mac: `."""
    return head + base64.b64encode(hmac.digest(key, head, "sha256")) + b"\n"


def unix(text):
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def accepted(*deks, subject=SQLITE, file_id=FILE_ID, cipher="sqlcipher4", state="ready", revision=3, created=AT):
    """A manifest's text, and what a reader must find in it."""
    form, _, file_name = subject.rpartition(":")
    tenant = form.rpartition(":")[2] if "tenant" in form else None
    lines = ["nimbus-enc/1", f"subject: {subject}", f"file-id: {file_id}", f"cipher: {cipher}", f"state: {state}"]
    lines += [f"revision: {revision}", f"created: {created}"]
    expected = {
        "subject": {"text": subject, "tenant": tenant, "file_name": file_name},
        "file_id": {"text": file_id, "bytes": file_id.replace("-", "")},
        "cipher": cipher,
        "state": state,
        "revision": revision,
        "created": {"text": created, "unix": unix(created)},
        "deks": [],
    }
    for id, drawn, wraps in deks:
        key = fixed(f"dek {id}")
        lines.append(f"dek: {id} {drawn}")
        entry = {"id": id, "created": {"text": drawn, "unix": unix(drawn)}, "dek": key.hex()}
        for purpose in ("data", "manifest", "archive"):
            entry[f"{purpose}_key"] = derived(key, file_id, purpose).hex()
        entry["wraps"] = []
        for provider, key_id, algorithm, at, seal, secrets in wraps:
            context = context_of(subject, file_id, cipher, id, provider, key_id)
            blob = seal(key, context)
            lines.append(f"wrap: {provider} {key_id} {algorithm} {at}")
            encoded = base64.b64encode(blob).decode()
            lines += [" " + encoded[start : start + 64] for start in range(0, len(encoded), 64)]
            wrap = {"provider": provider, "key_id": key_id, "algorithm": algorithm}
            wrap.update(at={"text": at, "unix": unix(at)}, context=context.hex(), blob=blob.hex(), **secrets)
            entry["wraps"].append(wrap)
        expected["deks"].append(entry)
    head = ("\n".join(lines) + "\nmac: ").encode()
    text = with_mac(head, bytes.fromhex(expected["deks"][0]["manifest_key"]))
    expected["mac"] = base64.b64decode(text[len(head) :]).hex()
    return text, expected


MASTER, OTHER, TENANTS, NEXT = fixed("master key"), fixed("other key"), fixed("tenant's key"), fixed("next key")
ONE, TWO = "4f1c0a9be2d35577", "90ab12cd34ef5601"
CONTROL = {"subject": "db:redb:control:nimbus-control.db", "cipher": "blocks1"}


def largest():
    """A manifest of exactly 32 KiB, with every list as long as it may be."""
    sizes = {ONE: [1400] * 8, TWO: [1400] * 7 + [1012]}
    deks = [dek(id, *(kms(f"{ARN}-{at}", size) for at, size in enumerate(sizes[id]))) for id in (ONE, TWO)]
    text, expected = accepted(*deks, subject="db:sqlite:tenant:demo:ffff", state="rekeying")
    assert len(text) == 32 * 1024, len(text)
    return text, expected


def all_accepted():
    return {
        "master-key-file": accepted(dek(ONE, local("master-key-file", MASTER))),
        "master-key-file-xchacha20": accepted(dek(ONE, local("master-key-file", MASTER, XCHACHA))),
        "key-dir": accepted(dek(ONE, local("key-dir", TENANTS))),
        "key-dir-xchacha20": accepted(dek(ONE, local("key-dir", TENANTS, XCHACHA))),
        "aws-kms": accepted(dek(ONE, kms())),
        "age": accepted(dek(ONE, local("master-key-file", MASTER), age("one"), age("two"))),
        "new": accepted(dek(ONE, local("master-key-file", MASTER)), state="new", revision=1),
        "rekeying": accepted(
            dek(ONE, local("master-key-file", MASTER), age("one")),
            dek(TWO, local("master-key-file", NEXT, XCHACHA, LATER), age("one", LATER), at=LATER),
            state="rekeying",
            revision=4,
        ),
        "rotated": accepted(dek(ONE, local("master-key-file", NEXT, at=LATER), local("master-key-file", MASTER))),
        "control": accepted(dek(ONE, local("master-key-file", MASTER)), **CONTROL),
        "libsql-cache": accepted(
            dek(ONE, local("master-key-file", MASTER)), subject="cache:libsql:tenant:demo:replica.db"
        ),
        "external": accepted(
            dek(ONE, local("master-key-file", MASTER)), subject="db:external:tenant:demo:documents", cipher="sealed1"
        ),
        # The sizes of the opaque keys end lines of base64 in each way: short, padded, full, one more.
        "eight-wraps": accepted(
            dek(
                ONE,
                local("master-key-file", MASTER),
                local("key-dir", MASTER),
                age("one"),
                *(kms(f"{ARN}-{size}", size) for size in (1, 46, 47, 48, 49)),
            )
        ),
        "shortest": accepted(
            dek("0" * 16, kms("arn:", 1, FIRST), at=FIRST),
            subject="db:redb:control:c",
            cipher="blocks1",
            file_id="00000000-0000-0000-0000-000000000000",
            state="new",
            revision=1,
            created=FIRST,
        ),
        "longest-names": accepted(
            dek("f" * 16, kms("arn:" + "~" * 508, 1, LAST), at=LAST),
            subject=f"cache:libsql:tenant:{'z' * 48}:{'!' * 255}",
            file_id="ffffffff-ffff-ffff-ffff-ffffffffffff",
            revision=2**63 - 1,
            created=LAST,
        ),
        "largest-wrap": accepted(dek(ONE, kms(size=8 * 1024))),
        "largest": largest(),
    }


def all_refused(vectors):
    """Texts with one fault each: the MAC of whatever has one is right, but where it is the fault."""
    base, expected = vectors["master-key-file"]
    key = bytes.fromhex(expected["deks"][0]["manifest_key"])
    refused = {}

    def put(name, text, error, **more):
        assert name not in refused, name
        refused[name] = text, {"error": error, **more}

    def resealed(text, *edits):
        for old, new in edits:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return with_mac(text[: text.rindex(b"mac: ") + len(b"mac: ")], key)

    def edit(name, old, new, error, line=None, field=None, of=base, **more):
        where = {"line": line, "field": field} if line else {}
        put(name, resealed(of, (old, new)), error, **where, **more)

    # the text as a whole
    put("empty", b"", "missing", line=1, field="version")
    put("too-large", vectors["largest"][0] + b"\n", "too-large")
    put("version-2", base.replace(b"nimbus-enc/1", b"nimbus-enc/2"), "unknown-version", found="nimbus-enc/2")
    put("sqlite-header", b"SQLite format 3\0" + bytes(84), "missing", line=1, field="version")
    put("crlf", base.replace(b"\n", b"\r\n"), "not-ascii", line=1, field="version")
    put("byte-order-mark", b"\xef\xbb\xbf" + base, "not-ascii", line=1, field="version")
    put("no-final-newline", base[:-1], "missing", line=12, field="mac")
    put("cut-in-a-field", base[: base.index(b"4\nstate")], "missing", line=4, field="cipher")
    put("cut-after-a-wrap", base[: base.index(b"mac")], "missing", line=12, field="mac")
    put("text-after-mac", base + b"x\n", "trailing", line=13, field="mac")
    put("empty-line-after-mac", base + b"\n", "trailing", line=13, field="mac")
    edit("line-too-long", b"sqlite3\n", b"sqlite3" + b"x" * 1024 + b"\n", "line-too-long", 2, "subject")
    edit("control-character", b"ready", b"rea\0dy", "not-ascii", 5, "state")
    edit("not-ascii", b"demo.sqlite3", "démo.sqlite3".encode(), "not-ascii", 2, "subject")

    # fields
    edit("field-missing", b"cipher: sqlcipher4\n", b"", "unexpected", 4, "cipher", found="state")
    edit("field-twice", b"revision: 3\n", b"revision: 3\nrevision: 3\n", "unexpected", 7, "created", found="revision")
    swapped = (b"cipher: sqlcipher4\nstate: ready\n", b"state: ready\ncipher: sqlcipher4\n")
    edit("fields-swapped", *swapped, "unexpected", 4, "cipher", found="state")
    edit("field-unknown", b"created:", b"policy: strict\ncreated:", "unexpected", 7, "created", found="policy")
    edit("field-unknown-before-mac", b"\nmac:", b"\npolicy: strict\nmac:", "unexpected", 12, "mac", found="policy")
    edit("field-in-capitals", b"state:", b"State:", "unexpected", 5, "state", found="State")
    edit("no-space-after-colon", b"state: ready", b"state:ready", "unexpected", 5, "state", found="state")
    edit("space-before-field", b"state: ready", b" state: ready", "unexpected", 5, "state", found=" state")

    # values
    edit("subject-of-no-form", b"db:sqlite", b"db:mysql", "name", 2, "subject", found="subject")
    edit("subject-without-file", b":demo.sqlite3", b"", "name", 2, "subject", found="subject")
    edit("tenant-in-capitals", b"tenant:demo", b"tenant:Demo", "name", 2, "subject", found="tenant")
    edit("tenant-too-long", b"tenant:demo", b"tenant:" + b"z" * 49, "name", 2, "subject", found="tenant")
    edit("tenant-with-hyphen-first", b"tenant:demo", b"tenant:-demo", "name", 2, "subject", found="tenant")
    edit("file-in-a-directory", b"demo.sqlite3", b"../demo.sqlite3", "name", 2, "subject", found="file")
    edit("file-dot-dot", b"demo.sqlite3", b"..", "name", 2, "subject", found="file")
    edit("file-too-long", b"demo.sqlite3", b"f" * 256, "name", 2, "subject", found="file")
    edit("subject-trailing-space", b"sqlite3\n", b"sqlite3 \n", "name", 2, "subject", found="file")
    edit("file-id-in-capitals", b"0198f2c4", b"0198F2C4", "name", 3, "file-id", found="file-id")
    edit("file-id-without-hyphens", FILE_ID.encode(), FILE_ID.replace("-", "").encode(), "name", 3, "file-id", found="file-id")
    edit("cipher-unknown", b"sqlcipher4", b"sqlcipher5", "unknown-cipher", 4, "cipher", found="sqlcipher5")
    edit("state-unknown", b"ready", b"sealed", "unknown-state", 5, "state", found="sealed")
    edit("state-trailing-space", b"ready", b"ready ", "unknown-state", 5, "state", found="ready ")
    edit("revision-0", b"revision: 3", b"revision: 0", "number", 6, "revision")
    edit("revision-with-zero-first", b"revision: 3", b"revision: 03", "number", 6, "revision")
    edit("revision-with-sign", b"revision: 3", b"revision: +3", "number", 6, "revision")
    edit("revision-empty", b"revision: 3", b"revision: ", "number", 6, "revision")
    edit("revision-2-to-the-64", b"revision: 3", b"revision: %d" % 2**64, "number", 6, "revision")
    edit("revision-2-to-the-63", b"revision: 3", b"revision: %d" % 2**63, "revision")
    for name, old, new in (
        ("time-1969", b"created: 2026", b"created: 1969"),
        ("time-9999", b"created: 2026", b"created: 9999"),
        ("time-no-such-day", b"created: 2026-11-22", b"created: 2026-02-29"),
        ("time-with-fraction", b"created: 2026-11-22T18:04:05Z", b"created: 2026-11-22T18:04:05.0Z"),
        ("time-with-offset", b"created: 2026-11-22T18:04:05Z", b"created: 2026-11-22T18:04:05+00:00"),
        ("time-leap-second", b"created: 2026-11-22T18:04:05Z", b"created: 2016-12-31T23:59:60Z"),
    ):
        edit(name, old, new, "time", 7, "created")

    # deks and wraps
    entry = base[base.index(b"dek:") : base.index(b"mac:")]
    wrap = base[base.index(b"wrap:") : base.index(b"mac:")]
    words, blob = wrap.split(b"\n", 1)
    lines = blob.split(b"\n")
    edit("dek-missing", b"dek: %s %s\n" % (ONE.encode(), AT.encode()), b"", "unexpected", 8, "dek", found="wrap")
    edit("dek-id-short", ONE.encode(), ONE[:-1].encode(), "name", 8, "dek", found="dek-id")
    edit("dek-id-in-capitals", ONE.encode(), ONE.upper().encode(), "name", 8, "dek", found="dek-id")
    edit("dek-without-time", b"%s %s" % (ONE.encode(), AT.encode()), ONE.encode(), "words", 8, "dek")
    edit("dek-with-two-spaces", ONE.encode() + b" ", ONE.encode() + b"  ", "words", 8, "dek")
    edit("dek-without-wraps", wrap, b"", "unexpected", 9, "wrap", found="mac")
    edit("wrap-with-a-fifth-word", words, words + b" x", "words", 9, "wrap")
    edit("provider-unknown", b"master-key-file", b"vault", "unknown-provider", 9, "wrap", found="vault")
    edit("algorithm-unknown", b"aes-256-gcm", b"aes-512-gcm", "unknown-algorithm", 9, "wrap", found="hkdf-sha256+aes-512-gcm")
    edit("key-id-too-long", words.split()[2], b"k" * 513, "name", 9, "wrap", found="key-id")
    edit("key-id-of-another-provider", words.split()[2], ARN.encode(), "key-id", found="master-key-file")
    kms_text = vectors["aws-kms"][0]
    edit("kms-key-id-an-alias", ARN.encode(), b"alias/nimbus", "key-id", of=kms_text, found="aws-kms")
    edit("algorithm-of-another-provider", AES.encode(), b"x25519", "algorithm", found="master-key-file x25519")
    edit("blob-missing", blob, b"", "unexpected", 10, "wrap", found="mac")
    edit("blob-line-empty", blob, b" \n", "base64", 10, "wrap")
    edit("blob-line-of-68", lines[0], lines[0] + b"AAAA", "base64", 10, "wrap")
    edit("blob-line-of-60", lines[0], lines[0][:-4], "base64", 11, "wrap")
    edit("blob-with-two-spaces", lines[0], b" " + lines[0][:-1], "base64", 10, "wrap")
    edit("blob-unpadded", b"=\nmac", b"\nmac", "base64", 11, "wrap")
    edit("blob-for-urls", lines[0], b" " + b"_" * 64, "base64", 10, "wrap")
    # The last character carries 4 bits of its own and 2 that must be 0.
    last = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    final = lines[1][-2:-1]
    edit("blob-with-bits-left-over", lines[1], lines[1][:-2] + last[last.index(final) + 1 :][:1] + b"=", "base64", 11, "wrap")
    edit("blob-of-two-texts", lines[1], b" AA==AA==", "base64", 11, "wrap")
    largest_wrap = vectors["largest-wrap"][0]
    tail = largest_wrap[: largest_wrap.index(b"\nmac")].rsplit(b"\n", 1)[1]
    edit("blob-too-large", tail, tail[:-1] + b"A", "wrapped-size", 180, "wrap", of=largest_wrap)
    eight = vectors["eight-wraps"][0]
    ninth = b"\nwrap: aws-kms arn:9 symmetric-default 2026-11-22T18:04:05Z\n AA==\nmac: "
    edit("nine-wraps", b"\nmac: ", ninth, "too-many", eight.count(b"\n"), "wrap", of=eight)
    rekeying = vectors["rekeying"][0]
    third = b"\ndek: %s %s\nmac: " % (b"3" * 16, AT.encode())
    edit("three-deks", b"\nmac: ", third, "too-many", rekeying.count(b"\n"), "dek", of=rekeying)
    edit("ready-with-two-deks", b"state: rekeying", b"state: ready", "dek-count", of=rekeying)
    edit("rekeying-with-one-dek", b"state: ready", b"state: rekeying", "dek-count")
    twice = resealed(base, (b"state: ready", b"state: rekeying"), (entry, entry + entry))
    put("dek-twice", twice, "duplicate-dek")
    edit("wrapped-twice-by-one-key", wrap, wrap + wrap, "duplicate-wrap")
    edit("cipher-of-another-subject", b"sqlcipher4", b"blocks1", "cipher")

    # mac
    value = base[base.rindex(b"mac: ") + 5 : -1]
    for name, text in (
        ("mac-empty", b""),
        ("mac-of-31-bytes", base64.b64encode(bytes(31))),
        ("mac-of-33-bytes", base64.b64encode(bytes(33))),
        ("mac-unpadded", value[:-1]),
        ("mac-of-two-texts", b"AA==" + base64.b64encode(bytes(31))),
    ):
        put(name, base[: base.rindex(value)] + text + b"\n", "base64", line=12, field="mac")

    # what only the key can tell
    refused_key = {"manifest_key": key.hex()}
    put("revision-edited", base.replace(b"revision: 3", b"revision: 4"), "mac-mismatch", **refused_key)
    put("state-edited", base.replace(b"ready", b"new"), "mac-mismatch", **refused_key)
    put("mac-of-another-manifest", base.replace(value, vectors["new"][0][-45:-1]), "mac-mismatch", **refused_key)
    foreign = derived(bytes.fromhex(expected["deks"][0]["dek"]), FILE_ID, "data").hex()
    put("mac-under-another-key", with_mac(base[: base.rindex(value)], bytes.fromhex(foreign)), "mac-mismatch", **refused_key)
    kek = {"kek": MASTER.hex(), **refused_key}
    for name, old, new in (
        ("wrap-of-another-tenant", b"tenant:demo", b"tenant:other"),
        ("wrap-of-another-dek", ONE.encode(), TWO.encode()),
        ("wrap-of-another-provider", b"master-key-file", b"key-dir"),
        ("wrap-of-another-algorithm", AES.encode(), XCHACHA.encode()),
        ("wrap-damaged", lines[1], b" A" + lines[1][2:] if lines[1][1:2] != b"A" else b" B" + lines[1][2:]),
        ("wrap-cut", lines[1], lines[1][:-4]),
    ):
        edit(name, old, new, "unwrap-failed", **kek)
    return refused


def generated():
    """Every file by its path in the repository."""
    vectors = all_accepted()
    refused = all_refused(vectors)
    here, files = HERE.relative_to(ROOT), {}
    for kind, cases in (("accepted", vectors), ("refused", refused)):
        index = []
        for name, (text, expected) in cases.items():
            files[here / kind / f"{name}.nimbus-enc"] = text
            index.append({"file": f"{kind}/{name}.nimbus-enc", **expected})
        files[here / f"{kind}.json"] = (json.dumps(index, indent=1) + "\n").encode()
    corpus = pathlib.PurePath("fuzz", "corpus")
    for target in ("parse", "round_trip", "verify"):
        # Refusals are seeds of the parser alone: the other targets end where it does.
        seeds = {**vectors, **refused} if target == "parse" else vectors
        files.update({corpus / target / name: text for name, (text, _) in seeds.items()})
    return files


def strays(files):
    """Vectors in the tree that are not generated. Seeds may be added by hand."""
    found = {path.relative_to(ROOT) for kind in ("accepted", "refused") for path in (HERE / kind).iterdir()}
    return sorted(map(str, found - set(files)))


def differing(files):
    """Generated files that the tree does not have, or has otherwise; and strays."""

    def same(path, content):
        return (ROOT / path).is_file() and (ROOT / path).read_bytes() == content

    return sorted(str(path) for path, content in files.items() if not same(path, content)) + strays(files)


if __name__ == "__main__":
    files = generated()
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(differing(files)) or 0)
    for path, content in files.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(content)
    for stray in strays(files):
        (ROOT / stray).unlink()
