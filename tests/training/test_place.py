"""Images that come batch by batch from the host give the same results as images in the device's memory."""

import os
import shutil

import pytest
from photos import write, write_cifar100

from mae_core.data.layout import list_images
from mae_core.errors import MissingDataError, ParameterError
from mae_core.evaluation.flops import of_classifier
from mae_core.explore.trained import ExploreParameters, small_model
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import load_sheet, read_json
from mae_core.study.tensors import load_tensors
from mae_core.training import runs
from mae_core.training.runs import finetune, pretrain

RUN = {
    "dataset": "folder", "data_dir": "photos", "image_size": 16, "patch_size": 4, "width": 24, "depth": 1,
    "decoder_width": 24, "batch_size": 8, "epochs": 2, "augment": "crop-flip", "checkpoint_seconds": 0.0, "threads": 1,
}  # fmt: skip


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "photos")


def results(folder):
    """Weights, and the metrics that are no times."""
    metrics = read_json(folder / "metrics.json")
    measured = {name: value for name, value in metrics.items() if "second" not in name and "memory" not in name}
    return load_tensors(folder / "weights.safetensors")[0], measured, (folder / "pictures.png").read_bytes()


def test_both_stages_are_the_same_bit_for_bit(photos, capsys):
    found = {}
    for where in ("device", "host"):
        run = PretrainParameters.check({**RUN, "study": where, "data_on": where})
        pretrain(run)
        tuned = FinetuneParameters.check({**RUN, "study": where, "data_on": where})
        finetune(tuned)
        found[where] = [*results(run.folder / "pretrain"), *results(run.folder / "finetune")]
        told = {
            "device": "images in memory (0 MB, as asked)",
            "host": "images batch by batch from a memory-mapped file (0 MB",
        }
        assert told[where] in capsys.readouterr().out
    for first, second in zip(*found.values(), strict=True):
        if isinstance(first, dict) and "encoder.class_token" in first:
            assert all(first[name].equal(second[name]) for name in first)
        else:
            assert first == second
    assert found["host"][4]["probes"]["knn"] > 0
    assert found["host"][4]["n_train"] == 22


def test_a_run_may_continue_with_its_images_elsewhere(photos):
    whole = PretrainParameters.check({**RUN, "study": "whole"})
    pretrain(whole)
    run = PretrainParameters.check({**RUN, "study": "moved", "data_on": "host"})

    def stop(at, model, test):
        if at.epoch == 0 and at.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="run again"):
        pretrain(run, watch=stop)
    pretrain(run.model_copy(update={"data_on": "device"}))
    first, second = (load_tensors(r.folder / "pretrain" / "weights.safetensors")[0] for r in (whole, run))
    assert all(first[name].equal(second[name]) for name in first)


def test_images_of_one_class_are_pre_trained_on_and_not_classified(photos):
    for part in ("train", "test"):
        for folder in (photos / part).iterdir():
            if folder.name.startswith("it's"):
                folder.rename(photos.parent / part)
    pretrain(PretrainParameters.check(RUN))
    with pytest.raises(ParameterError, match=r"images of one class only, .* for fine-tuning, it must hold train/<class>/"):
        finetune(FinetuneParameters.check(RUN))
    assert not (FinetuneParameters.check(RUN).folder / "finetune").exists()


def test_a_broken_image_starts_nothing(photos):
    path = next((photos / "test" / "red sky").glob("large.jpg"))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ParameterError, match=r"dataset is 'folder': these files .* test/red sky/large\.jpg \("):
        pretrain(PretrainParameters.check(RUN))
    assert not list(PretrainParameters.check(RUN).folder.glob("pretrain/*"))


def test_cifar100_goes_through_both_stages_with_its_top_5(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_cifar100(tmp_path / "data", monkeypatch)
    values = {**RUN, "dataset": "cifar100", "data_dir": "data", "image_size": 32, "patch_size": 8, "batch_size": 50}
    run = PretrainParameters.check(values)
    pretrain(run)
    finetune(FinetuneParameters.check({**values, "epochs": 3, "augment": "none"}))
    metrics = read_json(run.folder / "finetune" / "metrics.json")
    assert metrics["top5_accuracy"] > metrics["last_epoch_accuracy"]
    run = FinetuneParameters(**values)
    assert metrics["flops_per_image"] == of_classifier(run, 100) > of_classifier(run, 10)
    assert len(metrics["predictions"]["classes"]) == 100
    assert load_sheet(run.folder / "finetune" / "pictures.png", 1).shape == (1, 10, 32, 32, 3)


@pytest.mark.parametrize("change", ["", "added", "replaced by one of the same size"])
def test_images_that_change_while_they_are_read_stop_the_run(photos, monkeypatch, change):
    load, first = runs.load, photos / list_images(photos)[0].names[0]

    def load_and_change(*words):
        found = load(*words)
        if change == "added":
            shutil.copy(first, first.with_name("late.png"))
        elif change:
            os.utime(first, ns=(0, 0))
        return found

    monkeypatch.setattr(runs, "load", load_and_change)
    run = PretrainParameters.check(RUN)
    if not change:
        runs.pretrain(run)
        return
    with pytest.raises(ParameterError, match=r"the images in .* changed while they were read: run again"):
        runs.pretrain(run)
    assert not (run.folder / "pretrain" / "metrics.json").exists()


@pytest.mark.parametrize("open_it", [runs.pretrain, lambda run: small_model(explored(run))])
def test_a_folder_that_lacks_something_says_what(photos, open_it):
    for path in (photos / "train" / "red sky").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        (ParameterError, MissingDataError), match=r"the class 'red sky' in .* has no images in train/"
    ) as error:
        open_it(PretrainParameters.check(RUN))
    assert "cannot be read" not in str(error.value)


def explored(run):
    return ExploreParameters(train=True, dataset="folder", data_dir=run.data_dir, device="cpu")
