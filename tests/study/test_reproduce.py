"""A published run is run again from its provenance, at its commit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import git, needs_git
from safetensors.torch import save_file

from mae_core.errors import ParameterError
from mae_core.study import checkout, provenance
from mae_core.study.foreign import settings_sha256, weights_file
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.reproduce import Published, checked_out, differences, link_data, provide_weights, reproduce
from mae_core.study.results import read_json
from mae_core.study.tensors import tensors_sha256

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def published(tmp_path_factory, few_shapes_dir):
    """A folder with a pre-trained and a fine-tuned run, made by the code of the last commit."""
    told = provenance.commit()
    if told["commit"] is None:
        pytest.skip(told.get("commit_missing", "not a git checkout"))
    if not os.access(ROOT / checkout.git("rev-parse", "--git-common-dir"), os.W_OK):
        pytest.skip("another user's checkout, to which git cannot add a worktree")
    folder = tmp_path_factory.mktemp("published")
    (folder / "data").symlink_to(few_shapes_dir)
    values = {"width": 24, "depth": 1, "decoder_width": 24, "train_images": 256, "epochs": 1, "threads": 1}
    pretraining = PretrainParameters.check(values)
    weights = str(pretraining.folder / "pretrain" / "weights.safetensors")
    finetuning = FinetuneParameters.check({**values, "weights": weights, "probes": False})
    script = "import json, sys; from mae_core import FinetuneParameters as F, PretrainParameters as P, finetune, pretrain\n"
    script += "pretrain(P.check(json.loads(sys.argv[1]))); finetune(F.check(json.loads(sys.argv[2])))"
    words = [sys.executable, "-c", script, json.dumps(pretraining.flat()), json.dumps(finetuning.flat())]
    with checked_out(told["commit"], clean=False) as code:  # of a temporary worktree, even if this one is unchanged
        subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(code)}, check=True)
    return folder / pretraining.folder


def inside(published, monkeypatch):
    monkeypatch.chdir(published.parents[3])


def test_it_gives_the_same_weights_bit_for_bit(published, monkeypatch, capsys):
    inside(published, monkeypatch)
    before = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    assert reproduce(published / "pretrain" / "provenance.json")
    said = capsys.readouterr().out
    assert "weights: the same, bit for bit" in said
    assert "training loss, last epoch: " in said
    assert {path: path.read_bytes() for path in published.rglob("*") if path.is_file()} == before


def test_without_pre_trained_weights_it_pre_trains_first(published, monkeypatch, capsys):
    inside(published, monkeypatch)
    weights = published / "pretrain" / "weights.safetensors"
    weights.rename(weights.with_suffix(".away"))
    try:
        assert reproduce(published / "finetune" / "provenance.json")
    finally:
        weights.with_suffix(".away").rename(weights)
    said = capsys.readouterr().out
    assert "pre-training first" in said
    assert "test accuracy, last epoch (%): " in said


def test_it_says_so_when_the_weights_differ(published, monkeypatch, capsys, tmp_path):
    inside(published, monkeypatch)
    folder = published.parent / "other"
    folder.mkdir()
    shutil.copytree(published / "pretrain", folder / "pretrain")
    values = read_json(folder / "pretrain" / "parameters.json")
    values["base_lr"] *= 1.01  # another run than the one whose checksum stands there
    (folder / "pretrain" / "parameters.json").write_text(json.dumps(values), encoding="utf-8")
    words = [sys.executable, "-m", "mae_core", "reproduce", str(folder / "pretrain" / "provenance.json")]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, encoding="utf-8")
    assert done.returncode == 3
    assert "weights: not the same" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_md5": "0"}, r"the data set in data is not the one .* \(its checksum differs\): put that one there"),
        ({"commit": "0" * 40}, "is not in this repository"),
    ],
)
def test_what_cannot_be_repeated_is_told(published, monkeypatch, change, message):
    inside(published, monkeypatch)
    folder = published.parent / f"changed-{len(message)}" / "pretrain"
    shutil.copytree(published / "pretrain", folder)
    told = read_json(folder / "provenance.json") | change
    (folder / "provenance.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ParameterError, match=message):
        reproduce(folder / "provenance.json")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "commit 0{40} is needed, but git is not installed: install it"),
        pytest.param(
            os.environ["PATH"],
            r"commit 0{40} is not in this repository \(.+\): .* the whole history: git fetch --unshallow$",
            marks=needs_git,
        ),
    ],
)
def test_a_commit_that_cannot_be_had_is_told_with_what_to_do(path, message, monkeypatch):
    monkeypatch.setenv("PATH", path)
    with pytest.raises(ParameterError, match=message), checked_out("0" * 40, True):
        pytest.fail("there is no such commit")


def test_a_fine_tuned_run_without_its_pre_training_is_told(tmp_path):
    published = Published("finetune", {}, FinetuneParameters(weights="w.safetensors"), {}, {})
    path = tmp_path / "finetune" / "provenance.json"
    with pytest.raises(ParameterError, match=r"pretrain/provenance.json is missing: put its pre-training's results there"):
        provide_weights(published, path, tmp_path)


def started_from(weights, **told):
    return Published("finetune", {}, FinetuneParameters(weights=str(weights)), told, {})


def foreign(folder):
    """A folder as timm writes it, as far as reproducing looks, and the checksum of its weights."""
    folder.mkdir(parents=True)
    save_file({"norm.weight": torch.ones(4)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "vit"}', encoding="utf-8")
    return tensors_sha256(folder / "model.safetensors")


@pytest.mark.parametrize("given", ["theirs", "theirs/model.safetensors"])
def test_a_run_from_foreign_weights_gets_them_and_what_is_told_beside_them(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    published = started_from(given, initial_weights_sha256=foreign(tmp_path / "theirs"))
    provide_weights(published, Path("case/finetune/provenance.json"), tmp_path / "place")
    assert weights_file(str(tmp_path / "place" / given)).resolve() == tmp_path / "theirs" / "model.safetensors"
    assert read_json(tmp_path / "place" / "theirs" / "config.json") == {"architecture": "vit"}


@pytest.mark.parametrize("there", [True, False])
def test_other_weights_are_never_taken_in_place_of_foreign_ones(published, tmp_path, monkeypatch, there):
    """Its own pre-training, which stands beside it, is not what such a run started from."""
    inside(published, monkeypatch)
    run, place = started_from(tmp_path / "theirs", initial_weights_sha256="0" * 64), tmp_path / "place"
    if there:
        foreign(tmp_path / "theirs")
    with pytest.raises(
        ParameterError, match=r"started from .*theirs with the SHA-256 0{16} …, which is missing or another file"
    ):
        provide_weights(run, published / "finetune" / "provenance.json", place)
    assert not place.exists()


def test_foreign_weights_with_other_settings_beside_them_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = {"initial_weights_sha256": foreign(tmp_path / "theirs"), "initial_settings_sha256": settings_sha256("theirs")}
    provide_weights(started_from("theirs", **told), Path("case/finetune/provenance.json"), tmp_path / "place")
    (tmp_path / "theirs" / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ParameterError, match="or another configuration is beside it"):
        provide_weights(started_from("theirs", **told), Path("case/finetune/provenance.json"), tmp_path / "other")


@pytest.mark.parametrize("spoil", ["folder without weights", "half a file"])
def test_weights_that_are_not_whole_are_trained_again(published, tmp_path, monkeypatch, spoil):
    inside(published, monkeypatch)
    folder = published / "pretrain"
    whole = (folder / "weights.safetensors").read_bytes()
    given = Path("outputs/notebook/random-75/seed0/pretrain")
    trained = []
    monkeypatch.setattr("mae_core.study.reproduce.train", lambda run, place: trained.append(run) or "")
    try:
        if spoil == "half a file":
            (folder / "weights.safetensors").write_bytes(whole[:1000])
            given /= "weights.safetensors"
        else:
            (folder / "weights.safetensors").unlink()
        with pytest.raises(ParameterError, match="pre-training does not reproduce the published weights"):
            provide_weights(started_from(given), published / "finetune" / "provenance.json", tmp_path / "place")
    finally:
        (folder / "weights.safetensors").write_bytes(whole)
    assert [run.stage for run in trained] == ["pretrain"]


def test_its_own_pre_training_may_be_named_as_a_folder(published, tmp_path, monkeypatch):
    inside(published, monkeypatch)
    run = started_from("outputs/notebook/random-75/seed0/pretrain")  # from before checksums were recorded
    provide_weights(run, published / "finetune" / "provenance.json", tmp_path / "place")
    found = weights_file(str(tmp_path / "place" / run.run.weights))
    assert tensors_sha256(found) == read_json(published / "pretrain" / "provenance.json")["weights_sha256"]


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bfloat16.safetensors"])
def test_nothing_is_written_where_a_whole_path_or_a_copy_is_missing(published, tmp_path, monkeypatch, name):
    inside(published, monkeypatch)
    folder = Path("outputs/notebook/random-75/seed0/pretrain")
    gone = tmp_path / "gone" / folder / name if name == "weights.safetensors" else folder / name
    run = started_from(gone, initial_weights_sha256="0" * 64)
    with pytest.raises(ParameterError, match=r"which is missing or another file now, .*: put that file there"):
        provide_weights(run, published / "finetune" / "provenance.json", tmp_path / "place")
    assert not list(tmp_path.iterdir())


def test_weights_of_which_nothing_is_known_are_told(published, tmp_path, monkeypatch):
    inside(published, monkeypatch)
    with pytest.raises(
        ParameterError, match="does not tell the checksum of some/vit, from which the run started: it cannot"
    ):
        provide_weights(started_from("some/vit"), published / "finetune" / "provenance.json", tmp_path / "place")


@pytest.mark.parametrize("data_dir", ["data", "."])
def test_of_the_data_nothing_else_is_linked(tmp_path, monkeypatch, data_dir):
    """Results of the project beside the data would be replaced; weights beside them do not hide the data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / data_dir / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "outputs").mkdir()
    given, place = Path(data_dir, "theirs"), tmp_path / "place"
    published = started_from(given, initial_weights_sha256=foreign(tmp_path / given))
    provide_weights(published, Path("case/finetune/provenance.json"), place)
    link_data(FinetuneParameters(dataset="cifar10", data_dir=data_dir), place)
    assert (place / data_dir / "cifar-10-batches-py").samefile(tmp_path / data_dir / "cifar-10-batches-py")
    assert weights_file(str(place / given)).samefile(tmp_path / given / "model.safetensors")
    assert not (place / "outputs").exists()
    with pytest.raises(ParameterError, match="data_dir is the project's own folder: move the images"):
        link_data(FinetuneParameters(dataset="folder", data_dir="."), place)


def test_weights_outside_the_folder_of_the_run_are_refused(published, monkeypatch):
    inside(published, monkeypatch)
    folder = published.parent / "outside" / "finetune"
    shutil.copytree(published / "finetune", folder)
    values = read_json(folder / "parameters.json") | {"weights": "../models/vit"}
    (folder / "parameters.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ParameterError, match=r"its weights contains '\.\.'"):
        Published.read(folder / "provenance.json")


def test_a_pre_training_that_was_repeated_since_is_told(published, tmp_path, monkeypatch):
    inside(published, monkeypatch)
    run = started_from("outputs/notebook/random-75/seed0/pretrain/weights.safetensors", initial_weights_sha256="0" * 64)
    with pytest.raises(ParameterError, match=r"started from other weights than those of .*pretrain/provenance.json: put"):
        provide_weights(run, published / "finetune" / "provenance.json", tmp_path / "place")


def test_files_that_are_no_run_are_told(published, monkeypatch):
    inside(published, monkeypatch)
    folder = published.parent / "broken" / "pretrain"
    shutil.copytree(published / "pretrain", folder)
    (folder / "metrics.json").unlink()
    for path in (folder / "provenance.json", folder / "nothing.json"):
        with pytest.raises(ParameterError, match="cannot be used"):
            reproduce(path)


def test_the_project_may_be_a_subfolder_of_a_repository(tmp_path, monkeypatch):
    project = tmp_path / "thesis" / "code"
    (project / "mae_core").mkdir(parents=True)
    (project / "mae_core" / "__init__.py").write_text("", encoding="utf-8")
    git(tmp_path / "thesis", "init", "--quiet")
    git(tmp_path / "thesis", "add", ".")
    git(tmp_path / "thesis", "commit", "--quiet", "-m", "first")
    first = git(tmp_path / "thesis", "rev-parse", "HEAD")
    (project / "more.txt").write_text("", encoding="utf-8")
    git(tmp_path / "thesis", "add", ".")
    git(tmp_path / "thesis", "commit", "--quiet", "-m", "second")
    monkeypatch.setattr("mae_core.study.checkout.ROOT", project)
    with checked_out(first, True) as code:
        assert (code / "mae_core" / "__init__.py").is_file()
        assert not (code / "more.txt").exists()


def test_a_received_run_writes_no_data_outside_the_project(tmp_path, monkeypatch):
    folder, elsewhere = tmp_path / "project" / "pretrain", tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    names = ("commit", "clean", "platform", "versions", "device", "precision", "data_md5", "weights_sha256")
    run = PretrainParameters(data_dir=str(elsewhere)).flat()
    for name, content in {"provenance": dict.fromkeys(names), "parameters": run, "metrics": {}}.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(ParameterError, match="outside the project it must already contain"):
        reproduce(folder / "provenance.json")
    assert not elsewhere.exists()


def test_the_precision_of_todays_code_is_no_difference_but_the_machine_is():
    run = PretrainParameters(device="cpu")
    told = provenance.machine(run, torch.device("cpu")) | {"versions": provenance.versions(), "clean": True}
    assert list(differences(Published("pretrain", {}, run, told | {"precision": "float16"}, {}))) == []
    (sentence,) = differences(Published("pretrain", {}, run, told | {"platform": "an abacus"}, {}))
    assert sentence.startswith("platform, an abacus; here ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_run_on_a_device_that_is_missing_here_is_told():
    published = Published("pretrain", {}, PretrainParameters(device="cuda"), {}, {})
    with pytest.raises(ParameterError, match="device is 'cuda': this machine has none"):
        list(differences(published))


@pytest.mark.parametrize("path", sorted((ROOT / "outputs").glob("*/*/seed*/*/provenance.json")))
def test_every_published_run_can_be_read(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert Published.read(path).run.folder / path.parent.name == path.parent.relative_to(ROOT)
