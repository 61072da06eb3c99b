"""Downloads from a server on the loopback: cut, changed, altered, refused, at once; none beyond."""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.corpus import fetch, public_sets, remote

ROOT = pathlib.Path(__file__).parents[1]
CONTENT = bytes(range(251)) * 8
OTHER = CONTENT[::-1]
DATE, LATER = "Mon, 06 May 2024 10:00:00 GMT", "Tue, 07 May 2024 10:00:00 GMT"


class Site(http.server.ThreadingHTTPServer):
    """Serves one file under any path but /moved, and does wrong what a test asks for.

    Attributes:
      content, etag, date: the file and its validators; None where the server gives none.
      ranges, conditions: whether it heeds Range, and If-Range.
      cuts: body bytes sent before the connection ends, for each coming answer.
      reset: whether it then ends by a reset instead of a close.
      faults: (status, headers) in place of the coming answers.
      promised: added to every Content-Length.
      offset: added to the position that every 206 starts at.
      gate: an answer that was cut waits for it before it ends.
      asked, sent: Range and If-Range of each request; body bytes of each answer.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.date = CONTENT, '"one"', DATE
        self.ranges = self.conditions = True
        self.reset, self.promised, self.offset = False, 0, 0
        self.cuts, self.faults, self.asked, self.sent = [], [], [], []
        self.gate = None

    def url(self, path="/file"):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        """A client that went away, as several tests want it."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server
        if self.path == "/moved":
            return self._head(302, {"Location": site.url(), "Content-Length": "0"})
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        site.asked.append((wanted, condition))
        if site.faults:
            return self._head(*site.faults.pop(0))
        start, stop, whole = 0, len(site.content), len(site.content)
        changed = site.conditions and condition not in (None, site.etag, site.date)
        status = 206 if wanted and site.ranges and not changed else 200
        headers = {"ETag": site.etag, "Last-Modified": site.date}
        if status == 206:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            start = int(first) + site.offset
            stop = min(int(last) + 1, whole) if last else whole
            if start >= whole:
                return self._head(416, {"Content-Range": f"bytes */{whole}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{whole}"
        body = site.content[start:stop]
        headers["Content-Length"] = str(len(body) + site.promised)
        end = site.cuts.pop(0) if site.cuts else len(body)
        site.sent.append(len(body[:end]))  # before the client can have what it wants, and look
        self._head(status, headers)
        self.wfile.write(body[:end])
        if end < len(body):
            self.wfile.flush()
            if site.gate:
                site.gate.wait(30)
            if site.reset:
                time.sleep(0.1)  # what was sent should arrive before the reset does
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

    def _head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving():
    site = Site()
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


def _register(site, path="/file"):
    toy = public_sets.PublicSet("toy", site.url(path), "toy.h5ad", "PAGE", "LICENCE", "CITATION")
    public_sets.SETS["toy"] = toy


@pytest.fixture(autouse=True)
def _quick_and_local(monkeypatch):
    monkeypatch.setattr(fetch, "WAIT_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(public_sets, "SETS", public_sets.SETS | {})
    monkeypatch.setattr(fetch, "SETS", public_sets.SETS)


@pytest.fixture
def site():
    with serving() as site:
        _register(site)
        yield site


def _names(folder):
    return sorted(p.name for p in folder.iterdir())


def _assert_whole(folder, content=CONTENT):
    assert _names(folder) == ["toy.h5ad", "toy.h5ad.json"]
    assert (folder / "toy.h5ad").read_bytes() == content


def _change(site, content=OTHER, etag='"two"', date=LATER):
    site.content, site.etag, site.date = content, etag, date


def _cut_call(site, folder, at=700):
    """A call whose every connection is cut: the part that arrived stays, and nothing else."""
    site.cuts = [at] + [0] * (fetch.TRIES - 1)
    with pytest.raises(ValueError, match=f"{at:,} of 2,008 bytes arrived"):
        fetch.fetch("toy", folder)
    assert _names(folder) == ["toy.h5ad.json", "toy.h5ad.part"]
    assert (folder / "toy.h5ad.part").read_bytes() == site.content[:at]
    site.asked.clear()
    site.sent.clear()


def test_downloads_records_and_says_the_terms(site, tmp_path):
    said = fetch.fetch("toy", tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    _assert_whole(folder)
    checksum = hashlib.sha256(CONTENT).hexdigest()
    assert json.loads((folder / "toy.h5ad.json").read_text()) == {
        "url": site.url(), "bytes": 2008, "etag": '"one"', "last_modified": DATE,
        "sha256": checksum,
    }  # fmt: skip
    assert f"downloaded; 2,008 bytes, SHA-256 {checksum}\n" in said
    assert said.endswith("licence: LICENCE\ncite: CITATION\nsource page: PAGE")
    assert site.asked == [(None, None)]


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_is_resumed_with_the_rest_only(site, tmp_path, reset):
    site.cuts, site.reset = [700], reset
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    arrived = int(re.fullmatch(r"bytes=(\d+)-", site.asked[1][0])[1])
    assert 0 < arrived <= 700 and (reset or arrived == 700)
    assert site.asked == [(None, None), (f"bytes={arrived}-", '"one"')]
    assert site.sent == [700, 2008 - arrived]


def test_the_next_call_resumes_what_the_last_one_left(site, tmp_path):
    _cut_call(site, tmp_path)
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    assert site.asked == [("bytes=700-", '"one"')] and site.sent == [1308]


def test_a_redirect_keeps_the_range(site, tmp_path):
    _register(site, "/moved")
    site.cuts = [700]
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    assert site.asked[1] == ("bytes=700-", '"one"')


def test_tries_are_counted_from_the_last_progress(site, tmp_path):
    site.cuts = ([0] * (fetch.TRIES - 2) + [5]) * 3
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    assert len(site.asked) == 3 * (fetch.TRIES - 1) + 1


def test_waits_double(site, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(fetch, "WAIT_SECONDS", 1.5)
    monkeypatch.setattr(time, "sleep", waits.append)
    site.cuts = [0] * 4
    fetch.fetch("toy", tmp_path)
    assert waits == [1.5, 3.0, 6.0, 12.0]


def test_a_server_without_ranges_sends_all_of_it_again(site, tmp_path):
    site.ranges, site.cuts = False, [700]
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    assert site.asked[1] == ("bytes=700-", '"one"') and site.sent == [700, 2008]


def test_fewer_bytes_than_promised_are_refused(site, tmp_path):
    site.ranges, site.promised = False, 42
    with pytest.raises(ValueError, match=r"2,008 of 2,050 bytes arrived, 6 times in a row; run"):
        fetch.fetch("toy", tmp_path)
    assert "toy.h5ad" not in _names(tmp_path) and len(site.asked) == fetch.TRIES


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("etags", [('"one"', '"two"'), (None, None), ('W/"one"', 'W/"two"')])
def test_a_file_that_changed_during_the_download_is_taken_anew(site, tmp_path, etags, conditions):
    site.etag, site.conditions = etags[0], conditions
    _cut_call(site, tmp_path)
    _change(site, etag=etags[1])
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path, OTHER)
    assert site.asked[0] == ("bytes=700-", '"one"' if etags[0] == '"one"' else DATE)
    assert len(site.asked) == 1 if conditions else site.asked[1:] == [(None, None)]


@pytest.mark.parametrize("length", [300, 700, 1500, 5000])
def test_another_length_tells_a_change_where_there_is_no_validator(site, tmp_path, length):
    site.etag = site.date = None
    _cut_call(site, tmp_path)
    site.content = (OTHER * 3)[:length]
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path, site.content)
    assert site.asked == [("bytes=700-", None), (None, None)]


def test_a_range_from_elsewhere_is_not_appended(site, tmp_path):
    site.offset, site.cuts = 10, [700]
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    assert site.asked == [(None, None), ("bytes=700-", '"one"'), (None, None)]


def test_more_than_the_whole_is_written_anew(site, tmp_path):
    _cut_call(site, tmp_path)
    (tmp_path / "toy.h5ad.part").write_bytes(CONTENT + b"x")
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    assert site.asked == [(None, None)]


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, len(CONTENT)), max_size=fetch.TRIES - 1),
    ranges=st.booleans(), conditions=st.booleans(),
    etag=st.sampled_from(['"one"', 'W/"one"', None]), date=st.sampled_from([DATE, None]),
    change_after=st.integers(1, 9),
)  # fmt: skip
def test_whatever_is_cut_the_file_is_one_that_the_server_had(
    cuts, ranges, conditions, etag, date, change_after
):
    changed = (OTHER * 2)[: len(CONTENT) + 5]
    with serving() as site, tempfile.TemporaryDirectory() as folder:
        _register(site)
        site.ranges, site.conditions, site.cuts = ranges, conditions, list(cuts)
        site.etag, site.date = etag, date
        connect = remote.ask

        def ask(url, headers):
            if len(site.asked) == change_after:
                _change(site, changed, etag and etag.replace("one", "two"), date and LATER)
            return connect(url, headers)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote, "ask", ask)
            fetch.fetch("toy", pathlib.Path(folder))
        content = changed if len(site.asked) > change_after else CONTENT
        _assert_whole(pathlib.Path(folder), content)


def test_a_later_call_checks_and_brings_nothing(site, tmp_path):
    fetch.fetch("toy", tmp_path)
    said = fetch.fetch("toy", tmp_path)
    assert "toy.h5ad: there and unchanged; 2,008 bytes" in said and "CITATION" in said
    assert site.asked == [(None, None), ("bytes=0-0", None)] and site.sent == [2008, 1]
    _assert_whole(tmp_path)


def test_a_later_call_needs_no_server(site, tmp_path):
    fetch.fetch("toy", tmp_path)
    site.faults = [(503, {})]
    assert "unchanged (not compared with the server: answers 503" in fetch.fetch("toy", tmp_path)
    site.faults = [(404, {})]
    assert "unchanged (not compared with the server: " in fetch.fetch("toy", tmp_path)


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        (CONTENT[:-1], "bytes was 2008, is 2007"),
        (OTHER, f"sha256 was {hashlib.sha256(CONTENT).hexdigest()}, is "
                f"{hashlib.sha256(OTHER).hexdigest()}"),
    ],
)  # fmt: skip
def test_a_file_altered_after_its_download_is_refused(site, tmp_path, altered, message):
    fetch.fetch("toy", tmp_path)
    (tmp_path / "toy.h5ad").write_bytes(altered)
    with pytest.raises(ValueError, match=f"toy.h5ad: changed.*{message}; remove it and run again"):
        fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path, altered)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": OTHER + b"x", "etag": '"one"'}, "bytes was 2008, is 2009"),
        ({"content": OTHER}, 'etag was "one", is "two"'),
        ({"content": OTHER, "etag": None}, f"last_modified was {DATE}, is {LATER}"),
    ],
)
def test_a_server_with_another_file_than_recorded_is_refused(
    site, tmp_path, change, message, removed
):
    fetch.fetch("toy", tmp_path)
    if removed:
        (tmp_path / "toy.h5ad").unlink()
    _change(site, **change)
    remedy = "to take the new one, remove .*toy.h5ad and .*toy.h5ad.json and run again"
    with pytest.raises(ValueError, match=f"{message}; {remedy}"):
        fetch.fetch("toy", tmp_path)
    assert _names(tmp_path) == ["toy.h5ad", "toy.h5ad.json"][removed:]


@pytest.mark.parametrize(("etag", "date"), [('"one"', LATER), ('"one"', None), (None, None)])
def test_another_date_or_no_validator_is_no_change(site, tmp_path, etag, date):
    fetch.fetch("toy", tmp_path)
    site.etag, site.date = etag, date
    assert "there and unchanged;" in fetch.fetch("toy", tmp_path)


def test_a_removed_file_is_downloaded_again_and_must_be_the_recorded_one(site, tmp_path):
    site.etag = site.date = None
    fetch.fetch("toy", tmp_path)
    (tmp_path / "toy.h5ad").unlink()
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    (tmp_path / "toy.h5ad").unlink()
    site.content = OTHER
    both = [hashlib.sha256(content).hexdigest() for content in (OTHER, CONTENT)]
    with pytest.raises(ValueError, match=f"SHA-256 {both[0]}, its record {both[1]}; to take"):
        fetch.fetch("toy", tmp_path)
    assert _names(tmp_path) == ["toy.h5ad.json"]


def test_an_interruption_before_the_rename_leaves_no_target(site, tmp_path, monkeypatch):
    def interrupted(source, target):
        if pathlib.Path(target).name == "toy.h5ad":
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(fetch.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("toy", tmp_path)
    assert _names(tmp_path) == ["toy.h5ad.json", "toy.h5ad.part"]
    assert "sha256" in json.loads((tmp_path / "toy.h5ad.json").read_text())
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    assert len(site.asked) == 1


def test_the_lock_of_a_killed_process_is_taken_over(site, tmp_path):
    site.cuts, site.gate = [700], threading.Event()
    code = (
        "import pathlib, sys; from scaling.corpus import fetch, public_sets as p\n"
        "p.SETS['toy'] = p.PublicSet('toy', sys.argv[1], 'toy.h5ad', '', '', '')\n"
        "fetch.fetch('toy', pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, site.url(), str(tmp_path)]
    other = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: site.sent, 60)
        _wait_for(lambda: (tmp_path / "toy.h5ad.part").exists(), 10)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        site.gate.set()
    assert _names(tmp_path) == ["toy.h5ad.json", "toy.h5ad.lock", "toy.h5ad.part"]
    assert str(other.pid) in (tmp_path / "toy.h5ad.lock").read_text()
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)


def test_of_two_calls_at_once_the_second_is_refused(site, tmp_path):
    site.cuts, site.gate = [700], threading.Event()
    said = []
    first = threading.Thread(target=lambda: said.append(fetch.fetch("toy", tmp_path)))
    first.start()
    try:
        _wait_for(lambda: site.sent, 30)
        message = f"toy.h5ad: process {os.getpid()} is fetching it.*toy.h5ad.lock"
        with pytest.raises(ValueError, match=message):
            fetch.fetch("toy", tmp_path)
    finally:
        site.gate.set()
        first.join()
    assert len(said) == 1 and len(site.asked) == 2
    _assert_whole(tmp_path)


def _wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {}, "answers 404 Not Found; see the set's source page"),
        (403, {}, "answers 403 Forbidden"),
        (202, {"Content-Length": "0"}, "answers 202 .* download it in a browser"),
        (202, {"Content-Length": "9"}, "answers 202 .* of 9 bytes instead of a file"),
        (200, {"Content-Length": "9", "Content-Type": "text/html"}, "with text/html of 9 bytes"),
        (200, {}, "of unknown bytes instead of a file of known length"),
        (200, {"Content-Length": "0"}, "of unknown bytes instead of a file of known length"),
        (206, {"Content-Range": "bytes 0-9/*"}, "answers 206 with .* of known length"),
    ],
)
def test_answers_that_are_no_file_are_refused_at_once(site, tmp_path, status, headers, message):
    site.faults = [(status, headers)]
    with pytest.raises(ValueError, match=f"{site.url()}: .*{message}"):
        fetch.fetch("toy", tmp_path)
    assert len(site.asked) == 1 and _names(tmp_path) == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_answers_that_may_pass_are_asked_again(site, tmp_path, status):
    site.faults = [(status, {})] * 3
    fetch.fetch("toy", tmp_path)
    _assert_whole(tmp_path)
    assert len(site.asked) == 4


def test_no_server(tmp_path):
    with serving() as site:
        _register(site)
    with pytest.raises(ValueError, match=r"no connection .*refused.*, 6 times in a row"):
        fetch.fetch("toy", tmp_path)
    assert _names(tmp_path) == []


def test_a_disk_error_is_not_taken_for_the_network(site, tmp_path):
    (tmp_path / "toy.h5ad.part").mkdir()
    with pytest.raises(IsADirectoryError):
        fetch.fetch("toy", tmp_path)
    assert len(site.asked) == 1


def test_a_file_without_record_is_left_alone(site, tmp_path):
    (tmp_path / "toy.h5ad").write_bytes(b"mine")
    with pytest.raises(ValueError, match="toy.h5ad: no record of its download; move it away"):
        fetch.fetch("toy", tmp_path)
    assert (tmp_path / "toy.h5ad").read_bytes() == b"mine" and site.asked == []


@pytest.mark.parametrize("text", ["", "{", "3", "[]", '{"bytes": 3}'])
def test_a_damaged_record_is_named(site, tmp_path, text):
    (tmp_path / "toy.h5ad.json").write_text(text)
    with pytest.raises(ValueError, match="toy.h5ad.json: no record of a download .*; remove it"):
        fetch.fetch("toy", tmp_path)
    assert site.asked == []


def test_an_unknown_name_is_answered_with_the_names(tmp_path):
    with pytest.raises(ValueError, match="no public set 'pancrea'; there are: pancreas, zero_shot"):
        fetch.fetch("pancrea", tmp_path / "new")
    assert _names(tmp_path) == []


def test_the_table_names_every_set_once():
    sets = public_sets.SETS.values()
    assert len(sets) == len({s.url for s in sets}) == len({s.file for s in sets}) == 10
    for public in sets:
        assert public.url.startswith("https://") and public.page.startswith("https://")
        assert public.file.endswith((".h5ad", ".zip")) and "/" not in public.file
        rows = f"{public.name}\n  {public.file}\n  {public.url}\n  licence: {public.licence}\n"
        assert rows in public_sets.table()
        assert public.citation in public_sets.table()


@pytest.mark.slow
def test_the_command_line(tmp_path):
    def call(*arguments, status=0):
        command = [sys.executable, "-m", "experiments.fetch", *arguments]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert found.returncode == status, found.stderr
        return found

    assert call().stdout == call("--list").stdout == public_sets.table() + "\n"
    assert "give one name and a folder" in call("pancreas", status=2).stderr
    refused = call("nothing", f"--to={tmp_path / 'new'}", status=2).stderr
    assert refused.startswith("error: no public set 'nothing'; there are: pancreas,")
    assert _names(tmp_path) == []
