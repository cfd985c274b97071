"""Time for tests of speed, on a machine that may do other work, too."""

import contextlib
import time

import psutil


class Stopwatch:
    """Measures what this process and its descendants would take on a machine that does nothing else."""

    def __init__(self):
        self.began = self.now()

    def seconds(self):
        """Seconds since the start, without those in which the cores worked for other programs."""
        elapsed, worked, idle = (now - began for now, began in zip(self.now(), self.began, strict=True))
        return min(elapsed, worked + idle)

    @staticmethod
    def now():
        """Readings in seconds: the clock, the processor time of all these processes, and the idle time of a core."""
        here, worked = psutil.Process(), 0.0
        for process in (here, *here.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                worked += sum(process.cpu_times()[:4])  # with that of its children that have ended
        return time.monotonic(), worked, psutil.cpu_times().idle / psutil.cpu_count()
