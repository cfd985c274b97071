import contextlib
import errno
import os
import stat

import numpy as np
import pytest
import torch

from mae_core.errors import ParameterError
from mae_core.study.results import (
    METRICS,
    atomic_write,
    load_predictions,
    load_sheet,
    metric_rows,
    read_json,
    save_predictions,
    save_sheet,
    write_csv,
    write_json,
)
from mae_core.study.tensors import load_tensors, save_tensors, tensors_sha256


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:  # noqa: PT012 (the block is the test)
        temporary.write_text("half of", encoding="utf-8")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_json(tmp_path / name, {"x": [1.5, "é"], "y": None})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_flushes_no_folders_can_be_written(tmp_path, monkeypatch, number, passes):
    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", flush)
    with contextlib.nullcontext() if passes else pytest.raises(OSError, match=os.strerror(number)):
        write_json(tmp_path / "a.json", {"a": 1})


def test_others_may_read_weights_as_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(2)}, {})
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_tensors_and_their_note_come_back(tmp_path):
    tensors = {"w": torch.randn(3, 2), "step": torch.tensor(7), "bits": torch.tensor([1, 2], dtype=torch.uint8)}
    save_tensors(tmp_path / "w.safetensors", tensors, {"epoch": 3, "history": {"loss": [0.5]}})
    found, about = load_tensors(tmp_path / "w.safetensors")
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert about == {"epoch": 3, "history": {"loss": [0.5]}}


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"w": torch.randn(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"w.safetensors is damaged"):
        load_tensors(path)


def test_a_sheet_holds_its_images(tmp_path):
    pixels = torch.randint(256, (2, 5, 3, 32, 32))
    save_sheet(tmp_path / "p.png", [row / 127.5 - 1 for row in pixels])
    assert np.array_equal(load_sheet(tmp_path / "p.png", 2), pixels.permute(0, 1, 3, 4, 2).numpy())


def test_a_table_is_quoted_where_it_must_be(tmp_path):
    write_csv(tmp_path / "t.csv", [["a", 'b,"c"'], ["1", ""]])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == 'a,"b,""c"""\n1,\n'


def test_metrics_are_told_with_their_units():
    rows = metric_rows({"last_epoch_accuracy": 84.4, "probes": {"knn": 40.0}, "flops_per_image": 1234567})
    assert rows == [
        ["test accuracy, last epoch (%)", "84.40"],
        ["k-NN, frozen encoder (%)", "40.00"],
        ["FLOPs of a forward pass, per image", "1,234,567"],
    ]


def test_what_was_measured_on_held_out_images_is_not_called_a_test():
    values = dict.fromkeys(METRICS, 1.0)
    names = [name for name, _ in metric_rows(values, holdout=300)]
    assert not [name for name in names if "test" in name]
    assert {"validation accuracy, last epoch (%)", "top-5 validation accuracy, last epoch (%)", "validation loss"} < {
        *names
    }
    assert len(names) == len(metric_rows(values))


def test_equal_weights_give_equal_bytes_and_checksums(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2, dtype=torch.bfloat16)}
    files = [tmp_path / f"{i}.safetensors" for i in range(8)]
    for path in files:
        save_tensors(path, tensors, {"epochs": 3, "case": "x"})
    assert len({path.read_bytes() for path in files}) == 1
    save_tensors(files[0], dict(reversed(tensors.items())), {"other": "note"})
    assert tensors_sha256(files[0]) == tensors_sha256(files[1])
    save_tensors(files[0], tensors | {"b": tensors["b"] + 1e-6}, {"epochs": 3, "case": "x"})
    assert tensors_sha256(files[0]) != tensors_sha256(files[1])


@pytest.mark.parametrize(("n_classes", "kind"), [(10, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_predictions_come_back_as_they_were_saved(tmp_path, n_classes, kind):
    predicted_n, true_n = torch.arange(500) % n_classes, (torch.arange(500) * 7) % n_classes
    save_predictions(tmp_path / "p.png", predicted_n, true_n)
    found = load_predictions(tmp_path / "p.png")
    assert found.dtype == kind
    assert np.array_equal(found, np.stack([predicted_n, true_n]))
    before = (tmp_path / "p.png").read_bytes()
    save_predictions(tmp_path / "p.png", predicted_n, true_n)
    assert (tmp_path / "p.png").read_bytes() == before


def test_the_predictions_of_cifar10_take_less_than_20_kilobytes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    true_n = torch.randint(10, (10_000,), generator=generator)
    predicted_n = torch.where(
        torch.rand(10_000, generator=generator) < 0.75, true_n, torch.randint(10, (10_000,), generator=generator)
    )
    save_predictions(tmp_path / "p.png", predicted_n, true_n)
    assert (tmp_path / "p.png").stat().st_size < 20_000


@pytest.mark.parametrize("content", [b"", b"{", b"<<<<<<< HEAD", b"\xff"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, content):
    for name, read in (("metrics.json", read_json), ("pictures.png", lambda path: load_sheet(path, 1))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ParameterError, match=rf"{name} is damaged \(.*\): restore it, or delete its folder, and train"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_sheet(tmp_path / "none.png", 1)


def test_a_picture_that_ends_early_is_named(tmp_path):
    save_sheet(tmp_path / "pictures.png", [torch.rand(4, 3, 32, 32)])
    (tmp_path / "pictures.png").write_bytes((tmp_path / "pictures.png").read_bytes()[:-200])
    with pytest.raises(ParameterError, match=r"pictures.png is damaged"):
        load_sheet(tmp_path / "pictures.png", 1)


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics.json'"):
        write_json(tmp_path / "metrics.json", {})
    assert not list(tmp_path.iterdir())
