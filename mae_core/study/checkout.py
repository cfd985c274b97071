"""The git checkout that the package runs from, if it is one."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2].resolve()


def git(*words: str) -> str:
    """What git prints about the checkout.

    git refuses to read a checkout of another user, for its configuration could start programs; this very checkout is
    declared safe, because its code is running already.

    Raises:
        OSError: if git is not installed.
        subprocess.CalledProcessError: if it is no checkout, or git refuses.
    """
    command = ["git", "-C", str(ROOT), "-c", f"safe.directory={ROOT}", *words]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()


def keep_committed(results: Path, sources: Iterable[str]) -> None:
    """Date committed results as the newest of the sources that made them, unless they are newer.

    Snakemake repeats what is older than its sources. git dates what it writes by the clock: after a pull, code may be newer
    than results that did not change, and a published study would be trained anew. Results that differ from the commit,
    or are in none, keep their time.
    """
    newest = max((Path(path).stat().st_mtime_ns for path in sources), default=0)
    try:
        committed = git("ls-files", "-z", "--", str(results)).split("\0")
        changed = git("diff", "--name-only", "-z", "--relative", "HEAD", "--", str(results)).split("\0")
    except (OSError, subprocess.CalledProcessError):
        return
    for path in (ROOT / name for name in set(committed) - set(changed) - {""}):
        if path.stat().st_mtime_ns < newest:
            os.utime(path, ns=(newest, newest))
