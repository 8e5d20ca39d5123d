"""Downloads that resume, are checked before anybody sees them, and fail in one clear line."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cmbench.errors import WorkError

try:
    import fcntl
except ImportError:  # Windows: concurrent downloads of one file are not kept apart there
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # for a connection that closes before the last byte


def fetch(
    url: str, target: Path, *, sha256: str | None = None, md5: str | None = None, progress: bool = True
) -> Path:
    """Download ``url`` to ``target`` and return ``target``; a verified file that is already there is reused.

    Bytes arrive in ``target.part``. A later call continues there if it has a checksum to find out whether the
    pieces fit. The file takes its name only after the checksum is verified. Processes that want the same file
    wait for the first.

    Args:
        url: what to download (HTTP or HTTPS).
        target: where it goes; parent folders are made.
        sha256: expected hex digest, or None.
        md5: expected hex digest, or None. Without either, an existing file is taken as it is.
        progress: show a progress bar on stderr.

    Raises:
        WorkError: no network (or ``CMBENCH_OFFLINE=1``), refused, not found, cut short, or not the file that
            the checksum names; one line with the URL, the target, and how to provide the file by hand.
    """
    if _present(target, sha256, md5):
        return target
    by_hand = f"download it by hand and save it as {target}"
    if os.environ.get("CMBENCH_OFFLINE", "0") not in ("", "0"):
        raise WorkError(f"CMBENCH_OFFLINE is set, so {url} is not downloaded: unset it, or {by_hand}")
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            if _present(target, sha256, md5):
                return target
            if sha256 is None and md5 is None:
                part.unlink(missing_ok=True)
            resumed = part.exists()
            _download(url, part, progress)
            if resumed and not _matches(part, sha256, md5):
                part.unlink()  # the earlier piece may have been of another version: once more, from the start
                _download(url, part, progress)
            if not _matches(part, sha256, md5):
                part.unlink()
                raise WorkError(f"{url} does not have the expected checksum: try again later, or {by_hand}")
            part.replace(target)
    except urllib.error.HTTPError as error:
        raise WorkError(f"cannot download {url} (HTTP {error.code} {error.reason}): {by_hand}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise WorkError(f"cannot download {url} ({reason or type(error).__name__}): {by_hand}") from error
    return target


def verify(path: Path, *, sha256: str | None = None, md5: str | None = None) -> None:
    """Compare a file with the hex digests that are given.

    Raises:
        WorkError: the file cannot be read, or is not the expected one.
    """
    for algorithm, expected in (("sha256", sha256), ("md5", md5)):
        if expected is None:
            continue
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
        except OSError as error:
            raise WorkError(f"cannot read {path}: {error.strerror or error}") from error
        if found != expected.lower():
            raise WorkError(f"{path} is damaged or another file: {algorithm} {found}, expected {expected}")


def _matches(path: Path, sha256: str | None, md5: str | None) -> bool:
    try:
        verify(path, sha256=sha256, md5=md5)
    except WorkError:
        return False
    return True


def _present(path: Path, sha256: str | None, md5: str | None) -> bool:
    return path.is_file() and _matches(path, sha256, md5)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on ``folder``, so that the ranks of one job do not write into one another's file."""
    if fcntl is None:
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some cluster file systems know no locks; the checksum still guards the file
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _download(url: str, part: Path, progress: bool) -> None:
    """Bring ``part`` to its full length, continuing after a connection that closed early."""
    for _ in range(ATTEMPTS):
        have, total = _transfer(url, part, progress)
        if total is None or have == total:
            return
    raise OSError(f"the connection closed after {have} of {total} bytes; a new run continues there")


def _transfer(url: str, part: Path, progress: bool) -> tuple[int, int | None]:
    """Ask once for what ``part`` lacks; returns its length afterwards and the length announced, if any."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "cmbench", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        return have, have  # nothing follows what we have: whole, or of another file; the checksum tells
    with response:
        if response.status != 206:
            have = 0  # the server sends the whole file, whatever was asked for
        length = response.headers["Content-Length"]
        total = have + int(length) if length is not None else None
        with part.open("ab" if have else "wb") as file, _bar(part.stem, progress) as bar:
            task = bar.add_task("", total=total, completed=have)
            while chunk := _read(response, announced=total is not None):
                file.write(chunk)
                bar.advance(task, len(chunk))
            return file.tell(), total


def _read(response: http.client.HTTPResponse, announced: bool) -> bytes:
    """The next bytes; an early end shows in the length where one was announced, and is an error elsewhere."""
    try:
        return response.read(CHUNK)
    except http.client.IncompleteRead as error:
        if not announced:
            raise
        return error.partial


def _bar(title: str, shown: bool) -> Progress:
    return Progress(
        TextColumn(title, markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
