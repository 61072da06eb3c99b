"""Name of a public set -> its file in a folder, resumed where it was cut and checked every time."""

import contextlib
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import filelock
from tqdm import tqdm

from scaling.corpus import remote
from scaling.corpus.public_sets import SETS

TRIES = 6  # connections in a row that bring nothing new
WAIT_SECONDS = 1.0  # before the second of them; doubles each time


def fetch(name: str, folder: pathlib.Path) -> str:
    """Downloads a set's file, or checks the one that an earlier call downloaded.

    Beside FILE stands FILE.json, the record of its length, ETag and SHA-256; until it is whole,
    FILE.part stands in its place; and while a call runs, FILE.lock. A call that was cut short is
    continued by the next, where the server still has the same file.

    Args:
      name: a key of `public_sets.SETS`.
      folder: made where it is missing.

    Returns:
      What is there now, with its licence and citation.

    Raises:
      ValueError: unknown name; another call is at the file; the server does not send it, or not
        whole; the file here or on the server is not the one that was recorded.
    """
    if name not in SETS:
        raise ValueError(f"no public set {name!r}; there are: {', '.join(SETS)}")
    public = SETS[name]
    path = folder / public.file
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.exists():
            record, note = _verify(public.url, path)
        else:
            record, note = _download(public.url, path), "downloaded"
    length = f"{record['bytes']:,} bytes, SHA-256 {record['sha256']}"
    return f"{path}: {note}; {length}\n{public.terms()}"


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Holds FILE.lock, made with O_EXCL; that of a dead process is taken over."""
    lock = filelock.SoftFileLock(_beside(path, ".lock"), timeout=1)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(
            f"{path}: process {lock.pid} is fetching it; wait for its end, or remove "
            f"{lock.lock_file} if no machine runs it any more"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(url: str, path: pathlib.Path) -> dict:
    """Brings FILE.part to its full length, checks it, renames it; returns its record."""
    part = _beside(path, ".part")
    tries, furthest = 0, 0
    while (record := _read_record(path)) is None or _size(part) != record["bytes"]:
        try:
            _connect(url, path, part, record)
        except remote.Cut as cut:
            tries = 1 if _size(part) > furthest else tries + 1
            furthest = max(furthest, _size(part))
            if tries == TRIES:
                raise ValueError(
                    f"{url}: {cut}, {TRIES} times in a row; run the same command again later, it "
                    f"goes on from byte {_size(part):,} where the server allows it"
                ) from cut
            wait = WAIT_SECONDS * 2 ** (tries - 1)
            tqdm.write(f"{path.name}: {cut}; next try in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
    checksum = _checksum(part)
    if record.get("sha256", checksum) != checksum:
        part.unlink()
        raise ValueError(
            f"{url}: the download has SHA-256 {checksum}, its record {record['sha256']}; to take "
            f"the new file, remove {_beside(path, '.json')} and run again"
        )
    record = record | {"sha256": checksum}
    _write_record(path, record)
    os.replace(part, path)
    return record


def _connect(url: str, path: pathlib.Path, part: pathlib.Path, record: dict | None) -> None:
    """One connection: appends to FILE.part what it lacks, or writes it anew.

    The record is on disk before the first byte, so that the next one knows what it continues.
    """
    have = _size(part)
    resumed = record is not None and 0 < have < record["bytes"]
    headers = remote.range_from(have, record) if resumed else {}
    with remote.ask(url, headers) as answer:
        if answer.status == remote.RANGE_NOT_SATISFIABLE:
            part.unlink()
            raise remote.Cut(f"the server's file has no byte {have:,}; starting anew")
        start, now = remote.described(url, answer)
        if record and "sha256" in record:
            _refuse_change(url, path, record, now)
        elif start == 0:
            record = {"url": url, **now}
            _write_record(path, record)
        if start and (start != have or remote.differences(record, now)):
            part.unlink()
            raise remote.Cut("the server answers with part of another file; starting anew")
        left = record["bytes"] - start
        with (
            open(part, "ab" if start else "wb") as file,
            _bar(path.name, start, record["bytes"]) as bar,
        ):
            while left and (chunk := remote.read(answer, left)):
                file.write(chunk)
                bar.update(len(chunk))
                left -= len(chunk)
    if left:
        raise remote.Cut(f"{_size(part):,} of {record['bytes']:,} bytes arrived")


def _verify(url: str, path: pathlib.Path) -> tuple[dict, str]:
    """Checks a whole file against its record, and the record against the server."""
    record = _read_record(path)
    if record is None or "sha256" not in record:
        raise ValueError(f"{path}: no record of its download; move it away or give another --to")
    found = {"bytes": _size(path)}
    if found["bytes"] == record["bytes"]:
        found["sha256"] = _checksum(path)
    for key, value in found.items():
        if value != record[key]:
            raise ValueError(
                f"{path}: changed since its download: {key} was {record[key]}, is {value}; remove "
                "it and run again"
            )
    try:
        with remote.ask(url, {"Range": "bytes=0-0"}) as answer:
            _, now = remote.described(url, answer)
    except (remote.Cut, ValueError) as error:
        return record, f"there and unchanged (not compared with the server: {error})"
    _refuse_change(url, path, record, now)
    return record, "there and unchanged"


def _refuse_change(url: str, path: pathlib.Path, record: dict, now: dict) -> None:
    if found := remote.differences(record, now):
        raise ValueError(
            f"{url}: the server has another file than the one recorded: {found}; to take the new "
            f"one, remove {path} and {_beside(path, '.json')} and run again"
        )


def _checksum(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file, _bar(f"checking {path.name}", 0, _size(path)) as bar:
        while chunk := file.read(remote.CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _bar(what: str, start: int, total: int) -> tqdm:
    return tqdm(desc=what, initial=start, total=total, unit="B", unit_scale=True, leave=False)


def _read_record(path: pathlib.Path) -> dict | None:
    beside = _beside(path, ".json")
    if not beside.exists():
        return None
    try:
        record = json.loads(beside.read_text())
        if missing := {"bytes", "etag", "last_modified"} - record.keys():
            raise ValueError(f"it lacks {sorted(missing)}")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{beside}: no record of a download ({error}); remove it") from error
    return record


def _write_record(path: pathlib.Path, record: dict) -> None:
    beside = _beside(path, ".json")
    partial = _beside(beside, ".partial")
    partial.write_text(json.dumps(record, indent=1))
    os.replace(partial, beside)


def _beside(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(path.name + ending)


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
