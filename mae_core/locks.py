"""File locks, which the system releases when a process ends, however it ends; some file systems have none."""

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MISSING = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def acquire(file: IO[Any], wait: bool) -> bool:
    """Lock an open file until it is closed; False if its file system has no locks, as Lustre mounted without flock.

    Args:
        wait: whether to wait for another process that holds the lock.

    Raises:
        BlockingIOError: if another process holds the lock and ``wait`` is False.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in MISSING:
            return False
        raise
    return True


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Wait for a lock file and hold its lock, which is also released if the process is killed.

    Yields:
        Whether it is held: not where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        yield acquire(file, wait=True)
