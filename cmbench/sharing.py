"""Several processes on one piece of work: the same command, started twice with one OUT, shares its shards.

Claims are locks of the operating system, so that those of a killed process are free again. They hold between the
processes of one machine, and between machines where their common file system locks files.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmbench.checkpoints import Checkpoint
    from cmbench.workshop import Need, Workshop


@contextmanager
def claim(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file ``path``; yields whether it could be had, always True with ``wait``.

    The file, and the folder if it is empty, are removed afterwards.
    """
    handle = _lock(path, wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)
            with contextlib.suppress(OSError):  # not empty, or gone
                path.parent.rmdir()


def _lock(path: Path, wait: bool) -> int | None:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # its holder has removed this file: the next one has another


def share(
    paths: Sequence[Path], make: Callable[[int], None], locks: Path, finished: Callable[[], bool]
) -> None:
    """Make the files that are missing, together with other processes that do the same.

    What another process is at is left for later, and made here after all where that process died.

    Args:
        paths: the files, whose absence means that they are to be made.
        make: makes file ``paths[number]``, atomically.
        locks: prefix of the lock files.
        finished: whether another process has finished everything, and removed the files.
    """
    for wait in (False, True):
        for number, path in enumerate(paths):
            if path.exists():
                continue
            with claim(locks.with_name(f"{locks.name}-{number:05d}.lock"), wait=wait) as mine:
                if finished():
                    return
                if mine and not path.exists():
                    make(number)


def ensure(shop: "Workshop", need: "Need", *, force: bool = False) -> "Checkpoint":
    """:meth:`Workshop.ensure`, where several processes may want one network: the first trains it, the others wait."""
    if need.parent and shop.find(need) is None:
        ensure(shop, need.parent)
    with claim(shop.out / "locks" / f"{need.key}.lock", wait=True):
        return shop.ensure(need, force=force)
