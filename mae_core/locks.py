"""File locks, which the system releases when a process ends, however it ends; some file systems have none."""

import errno
import fcntl
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
