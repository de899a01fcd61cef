"""The reader of sealed values on the vectors of sealing/tests/vectors, and these against their generator."""

import json
import pathlib
import subprocess
import sys
import types
import unittest
import uuid

import nimbus_sealed
from nimbus_enc import Refused, hkdf

VECTORS = pathlib.Path(__file__).resolve().parents[2] / "sealing" / "tests" / "vectors"
CASES = json.loads((VECTORS / "sealed.json").read_text("ascii"))


def tenant():
    derive = lambda dek, purpose: hkdf(dek, uuid.UUID(CASES["file_id"]).bytes, f"nimbus-enc/1 {purpose}".encode(), 32)  # noqa: E731
    manifest = types.SimpleNamespace(
        cipher="sealed1", subject=CASES["subject"], file_id=CASES["file_id"], deks=[types.SimpleNamespace(id=CASES["dek_id"])], derive=derive
    )
    return nimbus_sealed.Tenant(manifest, bytes.fromhex(CASES["dek"]))


def row_of(case):
    return [bytes.fromhex(part) if isinstance(part, str) else part for part in case["row"]]


class Sealed(unittest.TestCase):
    def test_derives_the_keys(self):
        self.assertEqual((tenant().seal_key.hex(), tenant().blind_key.hex()), (CASES["seal_key"], CASES["blind_key"]))

    def test_opens_every_value(self):
        for case in CASES["values"]:
            with self.subTest(case["what"]):
                content, blob = bytes.fromhex(case["content"]), bytes.fromhex(case["blob"])
                self.assertEqual(tenant().open(case["column"], row_of(case), blob), content)
                self.assertEqual(tenant().context(case["column"], row_of(case)).hex(), case["context"])
                self.assertEqual(len(blob), nimbus_sealed.OVERHEAD + nimbus_sealed.padded_length(len(content)))
                if case["findable"]:
                    self.assertEqual(tenant().salt_of(case["column"], content).hex(), case["salt"])

    def test_refuses_what_is_to_be_refused(self):
        for case in CASES["refused"]:
            with self.subTest(case["what"]), self.assertRaises(Refused):
                tenant().open(case["column"], row_of(case), bytes.fromhex(case["blob"]))

    def test_makes_every_mac(self):
        for case in CASES["macs"]:
            self.assertEqual(tenant().mac_of(case["column"], row_of(case)).hex(), case["mac"])

    def test_blinds_every_value(self):
        for case in CASES["blind"]:
            with self.subTest(case["what"]):
                entry = tenant().blind(case["table"], case["path"], bytes.fromhex(case["value"]))
                self.assertEqual(entry.hex(), case["entry"])

    def test_the_vectors_are_what_the_generator_makes(self):
        subprocess.run([sys.executable, str(VECTORS / "generate.py"), "--check"], check=True)


if __name__ == "__main__":
    unittest.main()
