"""Claims: several processes over one results folder share the work instead of doing it twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmbench.errors import WorkError


class Busy(WorkError):  # noqa: N818 (it is a state, not a fault)
    """Another process is at it."""


@contextmanager
def claim(out: Path, name: str, *, wait: bool) -> Iterator[None]:
    """Hold the claim on one piece of work under ``out`` for the length of a block.

    The system takes the claim back when its process ends, however it ends.

    Args:
        out: results folder; claims lie in ``out/locks``.
        name: of the work, the same in every process.
        wait: wait for another process that holds it, rather than raise.

    Raises:
        Busy: another process holds it.
    """
    from filelock import FileLock, Timeout

    place = out / "locks" / f"{name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(timeout=-1 if wait else 0, poll_interval=1.0)
    except Timeout as error:
        raise Busy(f"another process is making {name} in {out}") from error
    try:
        yield
    finally:
        lock.release()
