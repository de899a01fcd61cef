"""Tests of the second reader itself: `python -m unittest discover tests/interop`."""

import os
import struct
import unittest
import uuid

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

import nimbus_enc
from nimbus_enc import Refused


class XChaCha(unittest.TestCase):
    """Vectors of draft-irtf-cfrg-xchacha-03."""

    def test_hchacha20(self):  # section 2.2.1
        key = bytes(range(32))
        nonce = bytes.fromhex("000000090000004a0000000031415927")
        expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
        self.assertEqual(nimbus_enc.hchacha20(key, nonce).hex(), expected)

    def test_xchacha20_poly1305(self):  # appendix A.3.1
        sealed = bytes.fromhex(
            "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39"
            "ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
            "21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49"
        )
        opened = nimbus_enc.xchacha20_poly1305_open(
            bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58)), sealed, bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
        )
        self.assertTrue(opened.startswith(b"Ladies and Gentlemen of the class of '99"))


KEY, DEK, SALT = b"k" * 32, b"d" * 32, b"s" * 32
FILE_ID = uuid.UUID("0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10")


def wrapped(algorithm, context):
    if algorithm == "hkdf-sha256+aes-256-gcm":
        material = nimbus_enc.hkdf(KEY, SALT, context, 44)
        return SALT + AESGCM(material[:32]).encrypt(material[32:], DEK, context)
    material = nimbus_enc.hkdf(KEY, SALT, context, 56)
    subkey = nimbus_enc.hchacha20(material[:32], material[32:48])
    return SALT + ChaCha20Poly1305(subkey).encrypt(b"\0\0\0\0" + material[48:], DEK, context)


def manifest(algorithm="hkdf-sha256+aes-256-gcm", subject="db:sqlite:tenant:demo:demo.sqlite3"):
    key_id = nimbus_enc.kek_id(KEY)
    parts = (subject, str(FILE_ID), "sqlcipher4", "4f1c0a9be2d35577", "master-key-file", key_id)
    context = b"nimbus-enc/1 wrap" + b"".join(struct.pack(">I", len(part)) + part.encode() for part in parts)
    encoded = nimbus_enc.base64.b64encode(wrapped(algorithm, context)).decode()
    head = (
        f"nimbus-enc/1\nsubject: {subject}\nfile-id: {FILE_ID}\ncipher: sqlcipher4\nstate: ready\nrevision: 1\n"
        "created: 2026-11-22T18:04:05Z\ndek: 4f1c0a9be2d35577 2026-11-22T18:04:05Z\n"
        f"wrap: master-key-file {key_id} {algorithm} 2026-11-22T18:04:05Z\n"
        + "".join(f" {encoded[at : at + 64]}\n" for at in range(0, len(encoded), 64))
        + "mac: "
    ).encode()
    mac_key = nimbus_enc.hkdf(DEK, FILE_ID.bytes, b"nimbus-enc/1 manifest", 32)
    mac = nimbus_enc.hmac.digest(mac_key, head, "sha256")
    return head + nimbus_enc.base64.b64encode(mac) + b"\n"


def opened(text, key=KEY):
    parsed = nimbus_enc.parse(text)
    dek = nimbus_enc.unwrap(parsed, parsed.deks[0], key)
    parsed.verify(dek)
    return dek


class Manifests(unittest.TestCase):
    def test_opens_both_algorithms(self):
        for algorithm in ("hkdf-sha256+aes-256-gcm", "hkdf-sha256+xchacha20-poly1305"):
            self.assertEqual(opened(manifest(algorithm)), DEK)

    def test_refuses_every_prefix(self):
        text = manifest()
        for end in range(len(text)):
            with self.assertRaises(Refused, msg=end):
                nimbus_enc.parse(text[:end])

    def test_refuses_every_changed_byte(self):
        text = manifest()
        for at in range(len(text)):
            changed = bytearray(text)
            changed[at] ^= 1
            with self.assertRaises(Refused, msg=at):
                opened(bytes(changed))

    def test_refuses_another_key_by_name(self):
        with self.assertRaisesRegex(Refused, "this key is"):
            opened(manifest(), os.urandom(32))


if __name__ == "__main__":
    unittest.main()
