"""Errors that say in one sentence what is wrong and what to do."""


class Explained(Exception):
    """Printed without a traceback: the sentence is all that a user of a notebook or a terminal needs."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(Explained, ValueError):
    """A parameter that cannot be used; the message says which one, why, and what is allowed."""


class ExportError(Explained, ValueError):
    """A notebook that cannot be printed."""


class MissingDataError(Explained, FileNotFoundError):
    """A data set that is not there, or not whole."""

    __str__ = Exception.__str__  # OSError's would look for a number of an error


class OutputError(Explained, OSError):
    """Results that cannot be written."""

    __str__ = Exception.__str__


class BusyError(Explained, RuntimeError):
    """Another process writes into the same folder."""


class NotFiniteError(Explained, ArithmeticError):
    """The loss became infinite or not a number."""


class DeviceMemoryError(Explained, MemoryError):
    """The device's memory does not hold what a step needs."""
