"""The way papermill runs a notebook: a kernel that talks by Unix sockets and stops at a checkpoint.

papermill finds this module by the entry point in pyproject.toml, so that the plain command ``papermill`` uses it for every
notebook of this environment; ``papermill --engine nbclient`` still uses papermill's own. Import papermill before it.

* **No ports.** Jupyter reserves five TCP ports for a kernel, closes them, and lets the kernel open them again. In between,
  another kernel can take one, and one of them fails to start: about 1 % if 16 start at once. The sockets of this engine lie
  in a folder of their own, where no other kernel and no other user looks.
* **Signals.** A scheduler's SIGTERM reaches papermill but not the kernel, which has a session of its own. This engine
  passes it on, and the run ends at a checkpoint (see training/loop.py).
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import psutil
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config


class Engine(NBClientEngine):
    """papermill's own engine with another channel to the kernel, and with signals passed on."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        """Execute a notebook; the arguments are those of papermill's NBClientEngine."""
        with sockets() as channel, signals_passed_on():
            return super().execute_managed_notebook(nb_man, kernel_name, config=Config(KernelManager=channel), **options)


@contextlib.contextmanager
def sockets() -> Iterator[dict[str, str]]:
    """Settings of a KernelManager whose sockets are files in a private temporary folder; none if that is not possible."""
    with contextlib.ExitStack() as stack:
        for place in dict.fromkeys([os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]):
            with contextlib.suppress(OSError):  # no such folder, not writable, a path of more than 107 bytes, no sockets
                folder = stack.enter_context(
                    tempfile.TemporaryDirectory(dir=place, prefix="mae-", ignore_cleanup_errors=True)
                )
                with socket.socket(socket.AF_UNIX) as trial:
                    trial.bind(f"{folder}/kernel-0")
                channel = {"transport": "ipc", "ip": f"{folder}/kernel", "connection_file": f"{folder}/kernel.json"}
                break
        else:
            channel = {}
            print("no temporary folder holds Unix sockets, so the kernel uses TCP ports: set TMPDIR", file=sys.stderr)
        yield channel


@contextlib.contextmanager
def signals_passed_on() -> Iterator[None]:
    """Pass SIGTERM on to the child processes, which here are the kernel."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


papermill_engines.register(None, Engine)  # None is the name of the engine that runs where no other is asked for
