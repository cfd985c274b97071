import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from mae_core.data import MissingDataError, Shapes, augment, checksum, draw_shapes, load, signed_distance, to_unit


def test_shapes_are_the_same_every_time():
    first, again, other = draw_shapes(50, seed=3), draw_shapes(50, seed=3), draw_shapes(50, seed=4)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_shapes_have_the_form_of_cifar10(shapes_dir):
    train, test = load("shapes", shapes_dir), load("shapes", shapes_dir, train=False)
    assert issubclass(Shapes, CIFAR10)
    assert train.images_nCHW.shape == (5000, 3, 32, 32)
    assert test.images_nCHW.shape == (1000, 3, 32, 32)
    assert train.images_nCHW.dtype == torch.uint8
    assert train.labels_n.bincount().tolist() == [500] * 10
    assert test.labels_n.bincount().tolist() == [100] * 10
    assert len(set(train.classes)) == 10


def test_no_image_of_the_test_split_is_in_the_training_split(shapes_dir):
    train, test = (load("shapes", shapes_dir, train=t).images_nCHW.flatten(1) for t in (True, False))
    assert not {bytes(i) for i in train.numpy()} & {bytes(i) for i in test.numpy()}


def test_the_ten_outlines_differ():
    """Drawn plainly, every shape covers a fair share of the picture, and no two are nearly the same."""
    v, u = np.mgrid[-1:1:64j, -1:1:64j]
    inside = np.stack([signed_distance(label, u, v) < 0 for label in range(10)]).reshape(10, -1)
    assert inside.mean(1).min() > 0.15
    assert inside.mean(1).max() < 0.75
    common = inside[:, None] & inside[None]
    overlap = common.sum(-1) / (inside[:, None] | inside[None]).sum(-1)
    assert (overlap - np.eye(10)).max() < 0.95


def test_a_shape_stands_out_from_its_ground():
    images, _ = draw_shapes(300, seed=9)
    centre, corner = images[:, 12:20, 12:20].mean((1, 2)), images[:, :4, :4].mean((1, 2))
    assert (np.abs(centre - corner).sum(-1) > 30).mean() > 0.9


def test_a_damaged_file_is_named(tmp_path):
    load("shapes", tmp_path)
    damaged = tmp_path / Shapes.base_folder / "data_batch_2"
    raw = bytearray(damaged.read_bytes())
    raw[1000] ^= 1
    damaged.write_bytes(raw)
    with pytest.raises(MissingDataError, match=r"data_batch_2 is damaged .*: delete the folder"):
        load("shapes", tmp_path)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="not one of shapes, cifar10"):
        load("cifar100")


def test_a_missing_cifar10_is_told_in_one_sentence(tmp_path, monkeypatch):
    def no_network(*args, **more):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    with pytest.raises(MissingDataError, match=r"CIFAR-10 is not in data_dir .* could not be downloaded"):
        load("cifar10", tmp_path)


def test_limit_takes_the_first_images(shapes_dir):
    whole, part = load("shapes", shapes_dir), load("shapes", shapes_dir, limit=100)
    assert len(part) == 100
    assert part.images_nCHW.equal(whole.images_nCHW[:100])


def test_pixels_are_scaled_to_minus_one_and_one():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_crop_flip_shifts_and_mirrors():
    """Every augmented image is one of the 162 shifted, perhaps mirrored, views of its own original."""
    images, _ = draw_shapes(40, seed=1)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    views = augment(batch, "crop-flip", torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(batch.float(), (4,) * 4, mode="reflect").byte()
    mirrored = 0
    for view, whole in zip(views, padded, strict=True):
        crops = [whole[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        straight = any(view.equal(crop) for crop in crops)
        turned = any(view.equal(crop.flip(-1)) for crop in crops)
        assert straight or turned
        mirrored += turned and not straight
    assert 8 <= mirrored <= 32
    assert not views.equal(batch)


def test_no_augmentation_changes_nothing():
    batch = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert augment(batch, "none") is batch


def test_cifar10_is_whole(cifar10_dir):
    train, test = load("cifar10", cifar10_dir), load("cifar10", cifar10_dir, train=False)
    assert train.images_nCHW.shape == (50000, 3, 32, 32)
    assert test.images_nCHW.shape == (10000, 3, 32, 32)
    assert train.labels_n.bincount().tolist() == [5000] * 10
    assert train.classes[train.labels_n[0]] == "frog"
    mean = train.images_nCHW.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)  # the published means


def test_the_checksum_names_the_data(few_shapes_dir, draws_few, tmp_path):
    load("shapes", tmp_path)
    assert checksum("shapes", tmp_path) == checksum("shapes", few_shapes_dir)
    path = tmp_path / Shapes.base_folder / "test_batch"
    path.write_bytes(path.read_bytes() + b" ")
    assert checksum("shapes", tmp_path) != checksum("shapes", few_shapes_dir)
