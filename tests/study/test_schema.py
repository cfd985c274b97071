import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from mae_core.study.schema import schema
from mae_core.study.study import Study

PARAMS = Path(__file__).parents[2] / "params"
STUDIES = sorted(PARAMS.glob("*.yaml"))
SCHEMA = PARAMS / "study.schema.json"


def complaints(content):
    return [error.message for error in jsonschema.Draft202012Validator(schema()).iter_errors(content)]


def test_the_schema_is_the_one_that_the_models_give():
    """If not: mae-core schema > params/study.schema.json"""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema()
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_names_the_schema_and_fits_it(path):
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA.name}"
    assert complaints(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": []}, {"seeds": [-1]}, {"seeds": ["0"]}, {"study": "../x"}, {"cases": {}}, {"cases": {"a/b": {}}},
        {"case": {}}, {"shared": {"width": 2}}, {"shared": {"mask_ratio": 0.5}}, {"shared": {"dataset": "cifar"}},
        {"shared": {"seed": 1}}, {"pretrain": {"epochs": 0}}, {"pretrain": {"weights": "x"}},
        {"finetune": {"norm_pix": True}}, {"cases": {"a": {"mask_strategy": "blok"}}}, {"sweep": {"b": {"probes": True}}},
        {"lengths": {"b": {"epochs": 0}}}, {"beside": ["../night"]}, {"beside": "night"},
    ],
)  # fmt: skip
def test_what_the_schema_refuses_the_study_refuses_too(change):
    content = {"study": "x", "seeds": [0], "cases": {"a": {}}} | change
    assert complaints(content)
    with pytest.raises(ValueError, match=r"\w"):
        Study.check(content)


def test_what_may_be_left_out_may_be_left_empty():
    content = {"study": "x", "seeds": [0], "more_seeds": None, "shared": None, "cases": {"a": None}, "sweep": None}
    assert complaints(content) == []
    assert Study.check(content).sweep == {}


def test_editors_are_told_what_each_parameter_means():
    told = schema()["properties"]["pretrain"]["anyOf"][0]["properties"]
    assert told["mask_strategy"]["enum"] == ["random", "block", "grid"]
    assert all(value["description"] for value in told.values())
