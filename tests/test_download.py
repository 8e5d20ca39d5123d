"""Downloads over loopback: resumed, verified, and one clear line where they fail."""

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cmbench.download import fetch, verify
from cmbench.errors import WorkError

CONTENT = os.urandom(1 << 16) * 50  # more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server does, and the Range header (or None) of every request it got."""

    url: str = ""
    content: bytes = CONTENT
    ranges: bool = True
    status: int = 200
    cut: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    seen: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.seen.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and state.ranges else 0  # type: ignore
            if start >= len(state.content):
                self.send_error(416)
                return
            self.send_response(206 if asked and state.ranges else 200)
            self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            stop = start + state.cut.pop(0) if state.cut else len(state.content)
            self.wfile.write(state.content[start:stop])

        def log_message(self, *args: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "CMBENCH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{listener.server_port}/weights.bin"
    yield state
    listener.shutdown()
    thread.join()
    listener.server_close()


def one_line(error: pytest.ExceptionInfo[WorkError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text


def test_a_file_arrives_and_is_reused(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "weights.bin"
    for _ in range(2):
        assert fetch(server.url, target, sha256=SHA256, md5=MD5, progress=False) == target
    assert target.read_bytes() == CONTENT
    assert len(server.seen) == 1
    assert [path.name for path in target.parent.iterdir()] == ["weights.bin"]


def test_a_damaged_file_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.write_bytes(CONTENT[:-1])
    fetch(server.url, target, md5=MD5, progress=False)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_completed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges = ranges
    target = tmp_path / "weights.bin"
    target.with_name("weights.bin.part").write_bytes(CONTENT[:1000])
    fetch(server.url, target, sha256=SHA256, progress=False)
    assert target.read_bytes() == CONTENT
    assert server.seen == ["bytes=1000-"]


@pytest.mark.parametrize("stale", [b"other bytes", CONTENT[::-1], CONTENT + b"more"])
def test_a_part_of_another_version_is_given_up_once(server: Server, tmp_path: Path, stale: bytes) -> None:
    target = tmp_path / "weights.bin"
    target.with_name("weights.bin.part").write_bytes(stale)
    fetch(server.url, target, sha256=SHA256, progress=False)
    assert target.read_bytes() == CONTENT
    assert server.seen == [f"bytes={len(stale)}-", None]


def test_a_whole_part_needs_no_bytes(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.with_name("weights.bin.part").write_bytes(CONTENT)
    fetch(server.url, target, sha256=SHA256, progress=False)
    assert target.read_bytes() == CONTENT
    assert server.seen == [f"bytes={len(CONTENT)}-"]


def test_without_a_checksum_nothing_is_pieced_together(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.with_name("weights.bin.part").write_bytes(b"who knows what")
    fetch(server.url, target, progress=False)
    assert target.read_bytes() == CONTENT
    assert server.seen == [None]


def test_a_connection_that_breaks_off_is_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.cut = [5000, 70000]
    target = fetch(server.url, tmp_path / "weights.bin", sha256=SHA256, progress=False)
    assert target.read_bytes() == CONTENT
    assert server.seen == [None, "bytes=5000-", "bytes=75000-"]


def test_what_breaks_off_for_good_is_continued_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.cut = [10, 10, 10]
    target = tmp_path / "weights.bin"
    with pytest.raises(WorkError) as error:
        fetch(server.url, target, sha256=SHA256, progress=False)
    one_line(error, server.url, target, f"30 of {len(CONTENT)} bytes", "by hand")
    assert not target.exists()
    fetch(server.url, target, sha256=SHA256, progress=False)
    assert target.read_bytes() == CONTENT
    assert server.seen[-1] == "bytes=30-"


def test_a_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    with pytest.raises(WorkError) as error:
        fetch(server.url, target, sha256="0" * 64, progress=False)
    one_line(error, server.url, target, "checksum", "by hand")
    assert list(tmp_path.iterdir()) == []


def test_not_found(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(WorkError) as error:
        fetch(server.url, tmp_path / "weights.bin", progress=False)
    one_line(error, server.url, tmp_path / "weights.bin", "404", "by hand")


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMBENCH_OFFLINE", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    url = f"http://127.0.0.1:{listener.server_port}/weights.bin"
    listener.server_close()  # nobody listens there now
    with pytest.raises(WorkError) as error:
        fetch(url, tmp_path / "weights.bin", progress=False)
    one_line(error, url, tmp_path / "weights.bin", "refused", "by hand")


def test_a_target_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError) as error:
        fetch(server.url, tmp_path / "file" / "weights.bin", progress=False)
    one_line(error, server.url, tmp_path / "file" / "weights.bin")


def test_offline_asks_nobody_but_reuses(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMBENCH_OFFLINE", "1")
    target = tmp_path / "weights.bin"
    with pytest.raises(WorkError) as error:
        fetch(server.url, target, sha256=SHA256)
    one_line(error, "CMBENCH_OFFLINE", server.url, target, "by hand")
    assert server.seen == []
    target.write_bytes(CONTENT)
    assert fetch(server.url, target, sha256=SHA256) == target


def test_concurrent_calls_download_once(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    calls = [
        threading.Thread(target=fetch, args=(server.url, target), kwargs={"md5": MD5, "progress": False})
        for _ in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert target.read_bytes() == CONTENT
    assert len(server.seen) == 1


def test_the_bar_goes_to_stderr(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(server.url, tmp_path / "weights.bin", md5=MD5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "weights.bin" in captured.err


def test_verify(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTENT)
    verify(path, sha256=SHA256.upper(), md5=MD5)
    with pytest.raises(WorkError) as error:
        verify(path, md5="0" * 32)
    one_line(error, path, MD5)
    with pytest.raises(WorkError) as error:
        verify(tmp_path / "absent", md5=MD5)
    one_line(error, tmp_path / "absent")
