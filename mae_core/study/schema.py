"""The JSON Schema of study files, with which editors complete and check them."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from mae_core.study.checked import NAME
from mae_core.study.parameters import FinetuneParameters, Parameters, PretrainParameters
from mae_core.study.study import GIVEN, Study

ABOUT = "A study: its cases, its seeds, and the parameters of their runs."


def schema() -> dict[str, Any]:
    """The schema: a study file's keys, and every parameter with its type, range, choices and description."""
    pretrain, finetune = settings(PretrainParameters), settings(FinetuneParameters)
    both = pretrain["properties"].keys() & finetune["properties"].keys()
    shared = {**pretrain, "properties": {name: s for name, s in pretrain["properties"].items() if name in both}}
    cases = {"patternProperties": {NAME: {"anyOf": [pretrain, {"type": "null"}]}}, "additionalProperties": False}
    parts = {"shared": shared, "pretrain": pretrain, "finetune": finetune, "cases": cases, "sweep": cases, "lengths": cases}
    content = Study.model_json_schema()
    for name, part in parts.items():
        content["properties"][name] |= part
    for name, part in content["properties"].items():
        if name not in content["required"]:  # an optional key may be empty
            content["properties"][name] = {"anyOf": [part, {"type": "null"}], "description": part["description"]}
    return {"$schema": GenerateJsonSchema.schema_dialect, **content, "title": "A study of mae_core", "description": ABOUT}


def settings(kind: type[Parameters]) -> dict[str, Any]:
    """The schema of a mapping that sets some parameters of one kind of run."""
    values = kind.model_json_schema()["properties"]
    return {
        "type": "object",
        "properties": {name: value for name, value in values.items() if name not in GIVEN},
        "additionalProperties": False,
    }
