"""Takes a tenant out of a backup repository with no Nimbus code, as docs/backup-format.md describes it.

    python restore_tenant.py --key master.key --repository repo --tenant demo --out demo.sqlite3 [--snapshot 3 | --at 2026-11-30T14:03:07.000Z]

The repository is a directory (of a bucket, `aws s3 sync` makes one). Writes the database and its manifest; open_tenant.py opens them.
Everything is proven first: the MACs of the catalogue and of the packs under the control file's data key, and by them every byte. Needs `cryptography` from
PyPI. Exit codes: 0 done, 1 refused (the reason is on stderr).
"""

import argparse
import base64
import datetime
import hashlib
import hmac
import json
import pathlib
import struct
import sys

import nimbus_enc
from nimbus_enc import Refused

PAGE = 4096
PAGES = {b"nimbus-pages/1\n": struct.Struct(">I32s"), b"nimbus-pages/2\n": struct.Struct(">I32s32s")}
MAGIC = 15
TAG = slice(4016, 4048)
FRAMES = b"nimbus-frames/1\n"


def main():
    parser = argparse.ArgumentParser(description="Take a tenant out of a Nimbus backup with no Nimbus code.")
    parser.add_argument("--key", type=pathlib.Path, required=True, help="the master key file")
    parser.add_argument("--repository", type=pathlib.Path, required=True)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--snapshot", type=int, help="default: the newest that holds the tenant")
    parser.add_argument("--at", help="an instant, RFC 3339 in UTC with milliseconds")
    options = parser.parse_args()
    try:
        key = options.key.read_bytes()
        identifier = read_beginning(options.repository)
        numbers = counting(options.repository, identifier, key)
        if options.at:
            manifest, database = at_instant(options.repository, identifier, key, options.tenant, options.at, numbers)
        else:
            entry = find(options.repository, identifier, key, options.tenant, options.snapshot, numbers)
            manifest = read_manifest(options.repository, entry)
            database = assemble(options.repository, entry)
        options.out.write_bytes(database)
        options.out.with_name(options.out.name + ".nimbus-enc").write_bytes(manifest)
    except (OSError, ValueError, KeyError, Refused) as error:
        sys.exit(f"restore_tenant: {error}")


def read_beginning(repository):
    lines = (repository / "nimbus-repository").read_text("ascii").splitlines()
    if lines[0] != "nimbus-repository/1":
        raise Refused(f"{repository} is {lines[0]}, and this reads nimbus-repository/1")
    return lines[1].removeprefix("id: ")


def counting(repository, identifier, key):
    """The numbers of entries that count, the newest first: proven, and sealed with a data key of the control file that none before them calls replaced."""
    counting, replaced, last = [], set(), None
    for path in sorted((repository / "snapshots").glob("[0-9]" * 10)):
        form = path.read_bytes().split(b"\n", 1)[0]
        try:
            entry, _data = unseal(repository, f"snapshots/{path.name}", form, key)
        except (OSError, ValueError, KeyError, IndexError, Refused) as error:
            print(f"restore_tenant: passed over: snapshots/{path.name}: {error}", file=sys.stderr)
            continue
        dek_id = path.read_bytes().splitlines()[2].decode("ascii").split(" ")[2]
        if dek_id in replaced or (entry["number"], entry["repository"]) != (int(path.name), identifier):
            print(f"restore_tenant: passed over: snapshots/{path.name}: it was put there", file=sys.stderr)
            continue
        replaced.update(entry.get("keys_before", []))
        if last not in (None, dek_id):
            replaced.add(last)
        last = dek_id
        counting.insert(0, int(path.name))
    return counting


def find(repository, identifier, key, tenant, number, numbers):
    """The tenant's entry in a catalogue whose MAC is right."""
    for candidate in [number] if number else numbers:
        if is_removal(repository / "snapshots" / f"{candidate:010}"):
            continue
        catalogue = read_catalogue(repository, identifier, key, candidate)
        if candidate not in numbers:
            raise Refused(f"snapshot {candidate} is sealed with a data key that was replaced before")
        for entry in catalogue["tenants"]:
            if entry["subject"].split(":")[3] == tenant and entry["missing"] is None:
                return entry
    raise Refused(f"no snapshot holds the tenant {tenant}")


def is_removal(path):
    return path.read_bytes().startswith(b"nimbus-removal/")


def read_catalogue(repository, identifier, key, number):
    name = f"snapshots/{number:010}"
    catalogue, _data = unseal(repository, name, b"nimbus-snapshot/1", key)
    if catalogue["number"] != number or catalogue["repository"] != identifier:
        raise Refused(f"snapshot {number} was put there")
    return catalogue


def unseal(repository, name, form, key):
    """What an object says in its second line, once its MAC is right; and where its data begin."""
    text = read_object(repository, name)
    header, body, seal, _data = text.split(b"\n", 3)
    if header != form:
        raise Refused(f"{name} is no {form.decode()}")
    word, file_id, dek_id, mac = seal.decode("ascii").split(" ")
    if word != "mac:":
        raise Refused(f"{name} has no MAC")
    # Any manifest of the control file's data key will do.
    manifest = nimbus_enc.parse(hashed(sorted((repository / "keys" / file_id / dek_id).iterdir())[0]))
    dek = nimbus_enc.unwrap(manifest, manifest.deks[0], key)
    manifest.verify(dek)
    data = len(header) + len(body) + len(seal) + 3
    expected = hmac.new(manifest.derive(dek, "archive"), text[: data - 1 - len(mac)], hashlib.sha256).digest()
    if not hmac.compare_digest(expected, base64.b64decode(mac, validate=True)):
        raise Refused(f"{name} has a wrong MAC")
    return json.loads(body), data


def read_object(repository, name):
    """The bytes of an object; of a pack, also where it was put together with others."""
    if (repository / name).exists():
        return (repository / name).read_bytes()
    kind, *rest = name.split("/")
    bundles = (repository / kind / rest[0]).glob("*-*") if kind == "log" else []
    for path in bundles:
        first, last = (int(number) for number in path.name.split("-"))
        if first <= int(rest[1]) <= last:
            _header, body, _seal, data = path.read_bytes().split(b"\n", 3)
            lengths = [pack["bytes"] for pack in json.loads(body)["packs"]]
            place = int(rest[1]) - first
            begin = sum(lengths[:place])
            # The pack has a MAC of its own.
            return data[begin : begin + lengths[place]]
    return None


def at_instant(repository, identifier, key, tenant, at, numbers):
    """The manifest and the database of a tenant as its last commit by then left it."""
    snapshots = (number for number in numbers if not is_removal(repository / "snapshots" / f"{number:010}"))
    catalogues = (read_catalogue(repository, identifier, key, number) for number in snapshots)
    snapshot = next((one for one in catalogues if one["shipping"] and not one["tenant"] and one["taken"] <= at), None)
    if snapshot is None:
        raise Refused(f"nothing was shipped at {at}")
    shipping, end = snapshot["shipping"], snapshot["taken"]
    ms = milliseconds(at)
    mine = lambda one: one["subject"].split(":")[3] == tenant
    begun = {"base": 0, "file": next((one for one in snapshot["tenants"] if mine(one)), None)}
    segments, manifests, number = [], [], shipping["pack"]
    while end <= at:
        number += 1
        name = f"log/{shipping['epoch']:010}/{number:010}"
        if read_object(repository, name) is None:
            break
        pack, data = unseal(repository, name, b"nimbus-pack/1", key)
        if (pack["epoch"], pack["number"], pack["repository"]) != (shipping["epoch"], number, identifier):
            raise Refused(f"{name} was put there")
        if pack["anchor"] and (number > shipping["pack"] + 1 or pack["anchor"] > snapshot["number"]):
            break
        end = pack["at"]
        segments += [(name, data, one) for one in pack["frames"] if mine(one)]
        manifests += [one for one in pack["manifests"] if mine(one)]
        for base in pack["bases"]:
            if mine(base["file"]) and base["at"] <= at:
                begun = base
        if end <= at and any(mine(one) for one in pack["gone"]):
            raise Refused(f"{tenant} was deleted, or made again, before {at}: this reader does not tell which")
    if end < at:
        raise Refused(f"what was shipped ends at {end}")
    if begun["file"] is None:
        raise Refused(f"there was no tenant {tenant} at {at}")
    entry = begun["file"]
    pages = paged(assemble(repository, entry))
    size, waiting = len(pages), []
    for name, data, one in segments:
        is_mine = one["base"] == begun["base"] if begun["base"] else one["base"] < shipping["base"]
        if not is_mine:
            continue
        frames = read_segment(repository, name, data, one["span"])
        ends = {count: total for count, total, when in one["commits"] if when <= ms}
        for place, frame in enumerate(frames, 1):
            waiting.append(frame)
            if place in ends:
                pages.update(waiting)
                size, waiting = ends[place], []
    database = b"".join(pages.get(number, bytes(PAGE)) for number in range(1, size + 1))
    dek_id = begun.get("dek_id", entry["dek_id"])
    for one in manifests:
        if one["file_id"] == entry["file_id"] and dek_id in one["dek_ids"]:
            entry = {**entry, "dek_id": one["dek_ids"][0], "manifest": one["manifest"]}
    return read_manifest(repository, entry), database


def milliseconds(at):
    when = datetime.datetime.fromisoformat(at.replace("Z", "+00:00"))
    return round(when.timestamp() * 1000)


def paged(database):
    return {at // PAGE + 1: database[at : at + PAGE] for at in range(0, len(database), PAGE)}


def read_segment(repository, name, data, span):
    """Page numbers and pages, in the order of the WAL."""
    begin = data + span["offset"]
    segment = read_object(repository, name)[begin : begin + span["bytes"]]
    if hashlib.sha256(segment).hexdigest() != span["sha256"] or not segment.startswith(FRAMES):
        raise Refused(f"{name} is damaged")
    (count,) = struct.unpack_from(">I", segment, len(FRAMES))
    begin = len(FRAMES) + 4
    numbers = struct.unpack_from(f">{count}I", segment, begin)
    first = begin + 4 * count
    return [(number, segment[first + at * PAGE : first + (at + 1) * PAGE]) for at, number in enumerate(numbers)]


def read_manifest(repository, entry):
    """The manifest of an entry, or another of the same data key, the newest. It has a MAC of its own, under the data key that it holds."""
    manifests = repository / "keys" / entry["file_id"] / entry["dek_id"]
    if (manifests / entry["manifest"]).exists():
        return hashed(manifests / entry["manifest"])
    others = [hashed(path) for path in sorted(manifests.iterdir())] if manifests.exists() else []
    if not others:
        raise Refused(f"there is no manifest of {entry['subject']}: it was shredded, or removed")
    return max(others, key=lambda text: nimbus_enc.parse(text).revision)


def hashed(path):
    """An object whose name begins with its SHA-256."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.name.split(".")[0]:
        raise Refused(f"{path} is not what its name says")
    return content


def assemble(repository, entry):
    """The file of an entry: its runs one over the other, cut to its length."""
    count = -(-entry["bytes"] // PAGE)
    pages = {}
    for run in entry["runs"]:
        with (repository / run["object"]).open("rb") as file:
            file.seek(run["offset"])
            span = file.read(run["bytes"])
        form = PAGES.get(span[:MAGIC])
        if form is None:
            raise Refused(f"{run['object']} holds no pages")
        (held,) = struct.unpack_from(">I", span, MAGIC)
        index = MAGIC + 4
        first = index + held * form.size
        if len(span) != first + held * PAGE:
            raise Refused(f"{run['object']} has another length than its index says")
        # In repositories of older servers "sha256" proves the pages; in others their versions do.
        whole = run.get("sha256")
        if hashlib.sha256(whole and span or span[:first]).hexdigest() != (whole or run["index_sha256"]):
            raise Refused(f"{run['object']} is damaged")
        for place in range(held):
            number, version, *tag = form.unpack_from(span, index + place * form.size)
            page = span[first + place * PAGE : first + (place + 1) * PAGE]
            if not whole and (hashlib.sha256(page).digest() != version or tag not in ([], [page[TAG]])):
                raise Refused(f"{run['object']} is damaged")
            pages[number] = page
    missing = [number for number in range(1, count + 1) if number not in pages]
    if missing:
        raise Refused(f"no object holds page {missing[0]}")
    return b"".join(pages[number] for number in range(1, count + 1))[: entry["bytes"]]


if __name__ == "__main__":
    main()
