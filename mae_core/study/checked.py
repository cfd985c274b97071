"""Pydantic models whose validation errors are sentences that say what to change."""

import difflib
import os.path
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, get_args

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from mae_core.errors import ParameterError

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # safe as a folder name
Name = Annotated[str, Field(pattern=NAME)]
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the home folder
Seed = Annotated[int, Field(ge=0, le=2**31, strict=True)]
NAME_RULE = "a name consists of letters, digits, '-', '_' and '.', and starts with a letter or digit"
KINDS = {
    "int": "a whole number", "float": "a number", "finite": "a number", "bool": "true or false", "string": "text",
    "list": "a list", "tuple": "a list", "dict": "a mapping of parameters to values",
}  # fmt: skip


class Checked(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Immutable values, validated one by one and then together.

    Raises:
        ParameterError: for an unknown name (suggests the closest known name), a wrong type, or a value out of range.
    """

    described: ClassVar[str] = "a parameter"  # what error messages call a name

    def __init__(self, /, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            found = error.errors(include_url=False)
            first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
            raise ParameterError(self.explain(first, values)) from None

    @model_validator(mode="after")
    def _together(self):
        self.check_together()
        return self

    def check_together(self) -> None:
        """Raise ValueError if values that are valid alone do not fit together."""

    @classmethod
    def explain(cls, error: ErrorDetails, values: dict[str, Any]) -> str:
        """Return the error sentence for one of pydantic's errors."""
        kind, value = error["type"], error["input"]
        where: list[Any] = [part for part in error["loc"] if part != "[key]"]
        if kind == "value_error":
            return str(error["ctx"]["error"])
        name = where[0] if "[key]" in error["loc"] else where[-1]
        if kind == "missing":
            return f"{name} is missing: it is {cls.described} that must be given"
        known = {spec.alias or key: spec for key, spec in cls.model_fields.items()}
        if kind == "extra_forbidden":
            advice = nearest(name, known) or f"; there are {', '.join(known)}"
            return f"{name} is not {cls.described}{advice}"
        if isinstance(name, int):  # an item of a list
            name, value = where[0], values[where[0]]
            if kind != "string_pattern_mismatch":
                wanted = "names" if kind == "string_type" else "non-negative whole numbers"
                if kind == "less_than_equal":
                    wanted = f"whole numbers from 0 to {error['ctx']['le']}"
                return f"{name} is {value!r}: it must be a list of {wanted}"
        if kind == "string_pattern_mismatch":
            return f"{name} is {value!r}: {NAME_RULE}"
        if kind == "too_short":
            return f"{name} is {value!r}: it must have at least one entry"
        if kind == "literal_error":
            choices = get_args(known[name].annotation)
            word = {True: "on", False: "off"}.get(value) if isinstance(value, bool) else None
            if word in choices:
                return f'{name} is {value}: write "{word}" in quotes, because YAML reads {word} as {str(value).lower()}'
            return f"{name} is {value!r}: it must be one of {', '.join(choices)}{nearest(value, choices)}"
        if kind in ("greater_than_equal", "less_than_equal"):
            limits = known[name].metadata
            low = next((limit.ge for limit in limits if isinstance(limit, Ge)), None)
            high = next((limit.le for limit in limits if isinstance(limit, Le)), None)
            between = f"at least {low}" if high is None else f"between {low} and {high}"
            return f"{name} is {value}: it must be {between}"
        hint = ""
        if kind in ("int_type", "float_type") and isinstance(value, str) and is_number(value):
            hint = " (YAML reads 1e-3 as text: write 1.0e-3, without quotes)"
        if kind == "string_type" and isinstance(value, bool):
            hint = " (YAML reads no and off as false, and yes and on as true: put the name in quotes)"
        return f"{name} is {value!r}: it must be {KINDS[kind.split('_')[0]]}{hint}"


def is_number(text: str) -> bool:
    """Whether ``float`` can parse the text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def nearest(name: object, known: Iterable[str]) -> str:
    """An error suffix that suggests the closest known name, or one that contains it; empty if there is none."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    containing = [other for other in known if len(str(name)) > 1 and str(name) in other.split("_")]
    return f"; did you mean {(close or containing)[0]}?" if close or containing else ""
