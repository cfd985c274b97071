import ast
import gc
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

import nbformat
import pytest

from mae_core.data import DATASETS
from mae_core.errors import ParameterError
from mae_core.explore.trained import SEEN, ExploreParameters, Shown
from mae_core.report.text import words
from mae_core.study.parameters import (
    FinetuneParameters,
    PretrainParameters,
    ReportParameters,
    check_data_dir,
    enter_project,
)

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
KINDS = {
    "pretrain": PretrainParameters,
    "finetune": FinetuneParameters,
    "ablations": ReportParameters,
    "report": ReportParameters,
    "explore": ExploreParameters,
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_ration": 0.5}, "mask_ration is not a parameter of pretrain; did you mean mask_ratio?"),
        ({"lr": 1e-3}, r"^lr is not a parameter of pretrain; did you mean base_lr\?$"),
        ({"zzz": 1}, r"^zzz is not a parameter of pretrain; there are study, case, seed, dataset, .*, beta2$"),
        ({"base_lr": "1e-3"}, "base_lr is '1e-3': it must be a number .*write 1.0e-3"),
        ({"epochs": "5"}, "epochs is '5': it must be a whole number"),
        ({"epochs": 2.5}, "epochs is 2.5: it must be a whole number"),
        ({"epochs": True}, "epochs is True: it must be a whole number"),
        ({"epochs": 0}, "epochs is 0: it must be between 1 and"),
        ({"norm_pix": 1}, "norm_pix is 1: it must be true or false"),
        ({"mask_ratio": 1.5}, "mask_ratio is 1.5: it must be between 0 and 1"),
        ({"mask_ratio": float("nan")}, "mask_ratio is nan"),
        ({"mask_ratio": 1}, "at least one visible"),
        ({"mask_ratio": None}, "mask_ratio is None: it must be a number"),
        ({"mask_strategy": "blok"}, "mask_strategy is 'blok': .* did you mean block?"),
        ({"mask_strategy": "grid", "mask_ratio": 0.5}, "must be 0.75"),
        ({"mask_strategy": "grid", "patch_size": 32}, "at least one visible|even number"),
        ({"patch_size": 5}, "patch_size is 5: it must divide the image size of 32 pixels"),
        ({"image_size": 50}, "patch_size is 4: it must divide the image size of 50 pixels"),
        ({"image_size": 4}, "image_size is 4: it must be between 8 and 1024"),
        ({"image_size": 20, "mask_strategy": "grid"}, "even number of patches along a side, not 5"),
        ({"heads": 5}, "heads is 5: it must divide width, which is 48"),
        ({"decoder_width": 64}, "decoder_width is 64"),
        (
            {"variant": "paper", "decoder_width": 64, "mask_tokens_in_encoder": True},
            r"decoder_width \(64\) must equal width \(48\)",
        ),
        ({"warmup_epochs": 9.0}, "warmup_epochs is 9.0: it must be at most epochs"),
        ({"study": "../elsewhere"}, "study is '../elsewhere': a name consists of"),
        ({"case": "-rf"}, "case is '-rf': a name consists of"),
        ({"case": ""}, "case is '': a name consists of"),
        ({"device": "tpu"}, "device is 'tpu': it must be one of auto, cpu, cuda, mps"),
        ({"compile": True}, 'compile is True: write "on" in quotes, because YAML reads on as true'),
        ({"compile": False}, 'compile is False: write "off" in quotes, because YAML reads off as false'),
        ({"device": True}, "device is True: it must be one of auto, cpu, cuda, mps"),
    ],
)
def test_what_cannot_run_is_refused_by_name(values, message):
    with pytest.raises(ParameterError, match=message):
        PretrainParameters.check(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling": "avg"}, "pooling is 'avg': it must be one of class-token, mean"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5: it must be between 0.01 and 1"),
        ({"drop_path": 0.1, "depth": 1}, "drop_path is 0.1: it never drops the first block, so depth must be at least 2"),
        ({"mixup": 0.2, "batch_size": 1}, "mixup is 0.2: it mixes the images of a batch, so batch_size must be at least 2"),
        ({"cutmix": 1.0, "batch_size": 1}, "cutmix is 1.0: it mixes the images of a batch"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0: it must be between 0 and 0.999999"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0: it must be between 0 and 1"),
        ({"holdout": -1}, "holdout is -1: it must be at least 0"),
    ],
)
def test_parts_of_a_recipe_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ParameterError, match=message):
        FinetuneParameters.check(values)


@pytest.mark.parametrize(
    "values", [{"cases": ["a", "a"]}, {"cases": ["../a"]}, {"seeds": ["0"]}, {"seeds": 0}, {"seeds": [True]},
                {"beside": ["a", "a"]}, {"beside": ["../a"]}, {"study": "a", "beside": ["a"]}],
)  # fmt: skip
def test_lists_are_checked_too(values):
    with pytest.raises(ParameterError, match=r"cases|seeds|beside"):
        ReportParameters.check(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": [2**32]}, "seeds is [4294967296]: it must be a list of whole numbers from 0 to 2147483648"),
        ({"seeds": [-1]}, "seeds is [-1]: it must be a list of non-negative whole numbers"),
        ({"self": 1}, "self is not a parameter of report; there are study, cases"),
    ],
)
def test_what_is_wrong_with_a_list_or_a_name_is_told(values, message):
    with pytest.raises(ParameterError) as error:
        ReportParameters.check(values)
    assert str(error.value).startswith(message)


def test_a_folder_of_data_that_cannot_be_looked_into_is_told():
    with pytest.raises(ParameterError, match=r"it cannot be read \(File name too long\): check its name and permissions"):
        check_data_dir("cifar10", "/" + "x" * 300)


def test_whole_numbers_are_numbers():
    run = PretrainParameters.check({"warmup_epochs": 1})
    assert type(run.warmup_epochs) is float


def executed(*cells):
    """The namespace of a notebook in which these cells have run."""
    namespace = {"In": ["", *cells], "Out": {}}
    for cell in cells:
        exec(cell, namespace)
    return namespace


def test_a_namespace_gives_what_its_parameter_cells_set():
    own, injected = "seed: int = 3  # comment\nepochs = 2", "# Parameters\nseed = 4"
    assert PretrainParameters.from_namespace(executed(own, "x = print")) == PretrainParameters(seed=3, epochs=2)
    assert PretrainParameters.from_namespace(executed(own, injected, "x = print")) == PretrainParameters(seed=4, epochs=2)
    with pytest.raises(ParameterError, match="seeed is not a parameter of pretrain; did you mean seed"):
        PretrainParameters.from_namespace(executed(own, "seeed = 4", "x = print"))
    both = PretrainParameters.from_namespace(executed("depth = decoder_depth = 3", "x = print"))
    assert (both.depth, both.decoder_depth) == (3, 3)


def test_a_failed_check_leaves_no_earlier_run():
    namespace = executed("seed = 1", "x = print")
    namespace["run"] = PretrainParameters.from_namespace(namespace)
    namespace["In"] += ["sead = 2"]
    exec("sead = 2", namespace)
    with pytest.raises(ParameterError):
        namespace["run"] = PretrainParameters.from_namespace(namespace)
    assert "run" not in namespace


def test_the_widget_of_an_earlier_run_is_closed():
    """ipywidgets keeps every open widget, and with it models and images."""
    closed = []
    namespace = executed("seed = 1", "x = print")
    namespace["view"] = SimpleNamespace(close=lambda: closed.append(True))
    PretrainParameters.from_namespace(namespace)
    PretrainParameters.from_namespace(namespace)
    assert (closed, "view" in namespace) == ([True], False)
    namespace["view"] = "a reader's own"
    PretrainParameters.from_namespace(namespace)
    assert "view" not in namespace


def full(**changed):
    """A notebook's own cell of parameters, with some lines changed."""
    held = {name: repr(getattr(PretrainParameters(), name)) for name in PretrainParameters.model_fields} | changed
    return "\n".join(f"{name}: str = {value}" for name, value in held.items())


@pytest.mark.parametrize("lines", [{"epochs": "2 * 1"}, {"study": "mine"}, {"study": '"mine'}, {"epochs": "2\nprint(1)"}])
def test_a_cell_of_parameters_with_more_than_values_is_no_run_with_defaults(lines):
    namespace = executed(full(), "x = print")
    namespace["In"] += [full(**lines), "x = print"]
    with pytest.raises(ParameterError, match=r"^the cell of parameters can only set plain values"):
        PretrainParameters.from_namespace(namespace)


def test_a_value_set_later_changes_that_value_alone():
    namespace = executed(full(study='"mine"'), "check = print", "epochs = 1", "x = 1", "check = print")
    assert PretrainParameters.from_namespace(namespace) == PretrainParameters(study="mine", epochs=1)
    with pytest.raises(ParameterError, match="sead"):
        PretrainParameters.from_namespace(executed(full(), "sead = 1", "check = print"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("seed = 3", ""),
        ("case = 'mine'; mask_ratio = 0.5", ""),
        ("mask_ratio = 0.5", "note: mask_ratio is 0.5 and case is 'random-75': set case, too"),
        ("mask_tokens_in_encoder = True", "note: mask_tokens_in_encoder is True and case"),
    ],
)
def test_other_masks_under_the_usual_name_are_told(capsys, lines, told):
    PretrainParameters.from_namespace(executed(lines))
    printed = capsys.readouterr().out
    assert printed.startswith(told)
    assert bool(printed) == bool(told)


def test_fine_tuning_takes_the_weights_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "shapes-2-batches-py").mkdir(parents=True)
    alone = FinetuneParameters.from_namespace(executed("seed = 3"))
    assert (alone.weights, alone.case) == ("", "scratch")
    assert FinetuneParameters.from_namespace(executed("case = 'mine'")).case == "mine"
    weights = tmp_path / "outputs" / "notebook" / "random-75" / "seed3" / "pretrain" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    found = FinetuneParameters.from_namespace(executed("seed = 3"))
    assert (found.weights, found.case) == (str(weights.relative_to(tmp_path)), "random-75")
    without = FinetuneParameters.from_namespace(executed("seed = 3\nweights = ''"))
    assert (without.weights, without.case) == ("", "scratch")


def test_a_notebook_can_be_run_again_in_the_same_kernel():
    check, work = "x = print", "grid = 8\nmask = (1, 2)\nhistory = dict(a=1)"
    again = executed("sead = 1", check, "seed = 3", check, work, "seed = 5", check)
    assert PretrainParameters.from_namespace(again) == PretrainParameters(seed=5)


def test_flat_parameters_are_read_back_the_same():
    run = PretrainParameters(mask_strategy="block", mask_ratio=0.5)
    assert PretrainParameters.check(run.flat()) == run


@pytest.mark.parametrize("name", KINDS)
def test_a_notebooks_cell_holds_the_same_parameters(name):
    """Same names, order, types and defaults; each line's comment is the parameter's description and its choices."""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    statements = ast.parse(cell.source).body
    found = [(s.target.id, ast.unparse(s.annotation), ast.literal_eval(s.value)) for s in statements]
    default = KINDS[name]()
    held = {field: getattr(default, field) for field in KINDS[name].model_fields}
    assert found == [(field, type(value).__name__, value) for field, value in held.items()]
    for line, spec in zip(cell.source.splitlines(), KINDS[name].model_fields.values(), strict=True):
        choices = f" ({', '.join(get_args(spec.annotation))})" if get_origin(spec.annotation) is Literal else ""
        assert line.endswith(f"  # {spec.description}{choices}")


def test_the_explorer_and_the_report_know_every_data_set():
    assert set(get_args(Shown)) == {"auto", *DATASETS}
    assert SEEN.keys() == words.DATASETS.keys() == {*DATASETS} - {"folder"}


def test_a_notebook_started_below_the_root_works_at_the_root(tmp_path, monkeypatch):
    for name in ("notebooks", "params"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    enter_project()
    assert Path.cwd() == tmp_path
    elsewhere = tmp_path / "params"
    (tmp_path / "notebooks").rmdir()
    monkeypatch.chdir(elsewhere)
    enter_project()
    assert Path.cwd() == elsewhere


def test_a_notebook_looks_for_garbage_less_often():
    before = gc.get_threshold()
    gc.set_threshold(700)
    enter_project()
    assert gc.get_threshold()[0] >= 10_000
    gc.set_threshold(*before)


def test_a_path_can_start_at_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = FinetuneParameters(data_dir="~/pets", weights="~/weights.safetensors")
    assert (run.data_dir, run.weights) == (f"{tmp_path}/pets", f"{tmp_path}/weights.safetensors")
    with pytest.raises(ParameterError, match=r"outside the project it must already contain shapes"):
        check_data_dir("shapes", PretrainParameters(data_dir="~/none").data_dir)


def test_a_folder_that_cannot_be_read_is_explained():
    with pytest.raises(ParameterError, match=r"it cannot be read \(File name too long\): check its name and permissions"):
        check_data_dir("folder", 300 * "x")


def test_the_documented_messages_are_those_of_the_code():
    rows = (NOTEBOOKS.parent / "docs" / "reliability.md").read_text(encoding="utf-8").split("| an unknown name |", 1)[1]
    told = re.findall(r"\| `([^`]+)` \|$", f"|{rows.split(chr(10) * 2, 1)[0]}", re.M)
    wrong = [
        {"mask_ration": 0.5}, {"epochs": 2.5}, {"mask_ratio": 1.5}, {"base_lr": "1e-3"}, {"mask_strategy": "blok"},
        {"heads": 5}, {"patch_size": 5}, {"mask_strategy": "grid", "mask_ratio": 0.5}, {"warmup_epochs": 9.0, "epochs": 3},
        {"study": "../x"},
    ]  # fmt: skip
    assert len(told) >= len(wrong)
    for values in wrong:
        with pytest.raises(ParameterError) as refused:
            PretrainParameters.check(values)
        assert str(refused.value) in told
