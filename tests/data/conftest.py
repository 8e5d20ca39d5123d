"""Shared by the tests of data sets: an empty cache for every test, and the real data where there is some."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder: empty, and no network but the loopback's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CMBENCH_CACHE", str(folder))
    monkeypatch.delenv("CMBENCH_OFFLINE", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    return folder


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("CMBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CMBENCH_TEST_DATA names no folder with cifar-10-batches-bin/ and MNIST/raw/")
    return Path(folder)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that is served over loopback, and its address."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()
