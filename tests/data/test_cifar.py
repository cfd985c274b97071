import pytest
from torchvision.datasets import CIFAR10

from mae_core.data.images import load
from mae_core.data.shapes import Shapes
from mae_core.errors import MissingDataError


def test_a_damaged_file_is_named(tmp_path):
    load("shapes", tmp_path)
    damaged = tmp_path / Shapes.base_folder / "data_batch_2"
    raw = bytearray(damaged.read_bytes())
    raw[1000] ^= 1
    damaged.write_bytes(raw)
    with pytest.raises(MissingDataError, match=r"data_batch_2 is damaged .*: delete its folder"):
        load("shapes", tmp_path)


def test_a_missing_cifar10_is_told_in_one_sentence(tmp_path, monkeypatch):
    def no_network(*args, **more):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    with pytest.raises(MissingDataError, match=r"CIFAR-10 is not in data_dir .* could not be downloaded"):
        load("cifar10", tmp_path)


def test_cifar10_is_whole(cifar10_dir):
    train, test = load("cifar10", cifar10_dir), load("cifar10", cifar10_dir, train=False)
    assert train.images_nCHW.shape == (50000, 3, 32, 32)
    assert test.images_nCHW.shape == (10000, 3, 32, 32)
    assert train.labels_n.bincount().tolist() == [5000] * 10
    assert train.classes[train.labels_n[0]] == "frog"
    mean = train.images_nCHW.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)  # the published means
