"""The git checkout that the package runs from, if it is one."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2].resolve()


def git(*words: str) -> str:
    """What git prints about the checkout.

    git refuses to read a checkout of another user, because its configuration could start programs; this very checkout is
    declared safe, because its code is running already.

    Raises:
        OSError: if git is not installed.
        subprocess.CalledProcessError: if it is no checkout, or git refuses.
    """
    command = ["git", "-C", str(ROOT), "-c", f"safe.directory={ROOT}", *words]
    plain = os.environ | {"LC_ALL": "C"}  # messages in ASCII, whatever the locale
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape", check=True, env=plain)
    return done.stdout.strip()
