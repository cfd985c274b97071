"""Errors that say in one sentence what is wrong and what to do."""


class Explained(Exception):
    """An error that notebooks and the command line print as one sentence, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython prints instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(Explained, ValueError):
    """An invalid parameter; the message names it, its value, and what is allowed."""


class ExportError(Explained, ValueError):
    """A notebook that cannot be exported."""


class MissingDataError(Explained, FileNotFoundError):
    """A data set that is missing or incomplete."""

    __str__ = Exception.__str__  # OSError's expects an error number


class OutputError(Explained, OSError):
    """Results that cannot be written."""

    __str__ = Exception.__str__


class BusyError(Explained, RuntimeError):
    """Another process writes into the same folder."""


class StoppedError(Explained, RuntimeError):
    """A run was stopped on request (Stop in JupyterLab, Ctrl-C); it can continue later."""


class ProcessError(Explained, RuntimeError):
    """One of the processes that train a run together was killed, or hangs."""


class NotFiniteError(Explained, ArithmeticError):
    """A loss, a metric or a weight is infinite or not a number."""


class DeviceMemoryError(Explained, MemoryError):
    """The device does not have enough memory."""
