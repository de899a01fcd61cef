"""The second reader on the vectors of manifests/tests/vectors, and the vectors against their generator."""

import hashlib
import json
import pathlib
import sys
import unittest

import nimbus_enc
from nimbus_enc import Refused

VECTORS = pathlib.Path(__file__).resolve().parents[2] / "manifests" / "tests" / "vectors"
sys.path.insert(0, str(VECTORS))
import generate  # noqa: E402


def cases(name):
    return json.loads((VECTORS / name).read_text("ascii"))


def text_of(case):
    return (VECTORS / case["file"]).read_bytes()


class Accepted(unittest.TestCase):
    def test_finds_every_field(self):
        for case in cases("accepted.json"):
            with self.subTest(case["file"]):
                found = nimbus_enc.parse(text_of(case))
                self.assertEqual(found.subject, case["subject"]["text"])
                self.assertEqual(found.file_id.bytes.hex(), case["file_id"]["bytes"])
                self.assertEqual(found.cipher, case["cipher"])
                self.assertEqual(found.state, case["state"])
                self.assertEqual(found.revision, case["revision"])
                self.assertEqual(found.created, case["created"]["text"])
                self.assertEqual(found.mac.hex(), case["mac"])
                self.assertEqual(len(found.deks), len(case["deks"]))
                for dek, expected in zip(found.deks, case["deks"]):
                    self.assertEqual((dek.id, dek.created), (expected["id"], expected["created"]["text"]))
                    self.assertEqual(len(dek.wraps), len(expected["wraps"]))
                    for wrap, words in zip(dek.wraps, expected["wraps"]):
                        self.assertEqual(
                            (wrap.provider, wrap.key_id, wrap.algorithm, wrap.at, wrap.blob.hex()),
                            (words["provider"], words["key_id"], words["algorithm"], words["at"]["text"], words["blob"]),
                        )
                        self.assertEqual(found.context(dek, wrap).hex(), words["context"])

    def test_unwraps_derives_and_verifies(self):
        unwrapped = 0
        for case in cases("accepted.json"):
            with self.subTest(case["file"]):
                found = nimbus_enc.parse(text_of(case))
                found.verify(bytes.fromhex(case["deks"][0]["dek"]))
                for dek, expected in zip(found.deks, case["deks"]):
                    for purpose in ("data", "manifest", "archive"):
                        key = found.derive(bytes.fromhex(expected["dek"]), purpose)
                        self.assertEqual(key.hex(), expected[f"{purpose}_key"])
                    for wrap in expected["wraps"]:
                        if "kek" in wrap:
                            opened = nimbus_enc.unwrap(found, dek, bytes.fromhex(wrap["kek"]))
                            self.assertEqual(opened.hex(), expected["dek"])
                            unwrapped += 1
        self.assertGreater(unwrapped, 10)


class TheRefused(unittest.TestCase):
    def test_are_refused(self):
        for case in cases("refused.json"):
            with self.subTest(case["file"]), self.assertRaises(Refused):
                found = nimbus_enc.parse(text_of(case))
                self.assertIn(case["error"], ("mac-mismatch", "unwrap-failed"), "it was accepted")
                if case["error"] == "unwrap-failed":
                    nimbus_enc.unwrap(found, found.deks[0], bytes.fromhex(case["kek"]))
                found.verify(next(dek for dek in self.deks() if self.commits(found, dek, case)))

    def deks(self):
        return [bytes.fromhex(dek["dek"]) for case in cases("accepted.json") for dek in case["deks"]]

    def commits(self, found, dek, case):
        return found.derive(dek, "manifest").hex() == case["manifest_key"]


class Generated(unittest.TestCase):
    def test_tree_holds_what_the_generator_writes(self):
        self.assertEqual(generate.differing(generate.generated()), [])


if __name__ == "__main__":
    unittest.main()
