import itertools
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from mae_core.data.images import load
from mae_core.data.shapes import Shapes, draw_shapes, signed_distance
from mae_core.errors import MissingDataError


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


def polygon(radii, turn=0.0):
    """Whether points lie in the polygon of these corners, evenly spread from the top clockwise; convex or a star."""
    angles = turn + 2 * np.pi * np.arange(len(radii) + 1) / len(radii)
    corners = np.stack([np.sin(angles), -np.cos(angles)], 1) * np.append(radii, radii[0])[:, None]

    def inside(u, v):
        found = np.zeros(u.shape, bool)
        for (a, b), (c, d) in itertools.pairwise(corners):  # the triangles between centre and edges
            first, second = (u * d - v * c) / (a * d - b * c), (v * a - u * b) / (a * d - b * c)
            found |= (first >= 0) & (second >= 0) & (first + second < 1)
        return found

    return inside


OUTLINES = {
    "circle": lambda u, v: u**2 + v**2 < 0.85**2,
    "square": lambda u, v: (abs(u) < 0.75) & (abs(v) < 0.75),
    "triangle": polygon([1.0] * 3),
    "diamond": lambda u, v: abs(u) + 0.8 * abs(v) < 0.85,
    "plus": lambda u, v: (abs(u) < 0.95) & (abs(v) < 0.3) | (abs(v) < 0.95) & (abs(u) < 0.3),
    "ring": lambda u, v: (u**2 + v**2 < 0.92**2) & (u**2 + v**2 > 0.48**2),
    "star": polygon([1.05, 1.05 * np.sin(0.6) / np.sin(0.6 + np.pi / 5)] * 5),
    "moon": lambda u, v: (u**2 + v**2 < 0.95**2) & ((u - 0.45) ** 2 + v**2 > 0.75**2),
    "hexagon": polygon([0.78 / np.cos(np.pi / 6)] * 6),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_is_that_of_its_name(name):
    v, u = np.mgrid[-1.2:1.2:121j, -1.2:1.2:121j]
    distance = signed_distance(Shapes.names.index(name), u, v)
    clear = abs(distance) > 1e-6
    assert ((distance < 0) == OUTLINES[name](u, v))[clear].all()


def test_a_heart_has_two_lobes_a_notch_and_a_point():
    u = np.array([0.4, -0.4, 0.0, 0.0, 0.0, 0.0, 0.3, 0.85, 0.55, 0.65])
    v = np.array([-0.2, -0.2, -0.24, -0.1, 1.25, 1.35, 0.8, 0.1, 0.55, 0.55])
    told = signed_distance(Shapes.names.index("heart"), u, v) < 0
    assert told.tolist() == [True, True, False, True, True, False, True, True, True, False]


@pytest.mark.parametrize("label", range(10))
def test_the_distance_to_an_outline_is_nearly_exact_beside_it(label):
    """Otherwise the soft edge would be wider or narrower than a pixel."""
    v, u = np.mgrid[-1.2:1.2:241j, -1.2:1.2:241j]
    distance = signed_distance(label, u, v)
    slope = np.hypot(*np.gradient(distance, 0.01))
    assert np.median(slope[abs(distance) < 0.05]) == pytest.approx(1, abs=0.05)


def test_there_are_ten_shapes():
    with pytest.raises(IndexError):
        signed_distance(10, np.zeros(1), np.zeros(1))


def test_noise_never_turns_black_into_white():
    images, _ = draw_shapes(300, seed=9)
    assert images.min() == 0
    assert np.abs(np.diff(images.astype(int), axis=2)).max() < 240


# Of ten images, one of each shape: the means of the upper left, upper right, lower left and lower right, then of colours.
DRAWN = {
    7: (122.2, 120.4, 121.6, 121.3, 120.7, 108.3, 135.2), 6: (118.2, 116.3, 117.2, 117.2, 140.6, 55.6, 155.4),
    1: (153.5, 172.9, 143.1, 166.0, 182.0, 97.9, 196.7), 3: (97.8, 97.4, 100.1, 98.4, 101.4, 78.3, 115.6),
    2: (159.7, 162.0, 153.6, 161.3, 140.1, 154.4, 183.0), 4: (139.4, 137.8, 140.0, 136.7, 134.4, 122.2, 158.9),
    0: (126.6, 121.8, 121.8, 121.1, 137.2, 160.5, 70.8), 9: (114.7, 115.4, 113.2, 114.2, 160.1, 52.5, 130.6),
    5: (143.6, 140.3, 139.5, 144.1, 177.8, 85.9, 161.9), 8: (162.9, 149.3, 159.2, 149.3, 115.8, 182.4, 167.4),
}  # fmt: skip


def test_the_drawing_is_still_that_of_version_2():
    """Else the folder needs another number: results on it would be compared that are of different data."""
    assert Shapes.base_folder == "shapes-2-batches-py"
    images, labels = draw_shapes(10, seed=5)
    assert labels.tolist() == list(DRAWN)
    quarters = images.reshape(10, 2, 16, 2, 16, 3).mean((2, 4, 5)).reshape(10, 4)
    found = np.concatenate([quarters, images.mean((1, 2))], 1)
    assert found.tolist() == [pytest.approx(row, abs=0.1) for row in DRAWN.values()]


def test_a_split_has_the_images_of_its_seeds_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(Shapes, "images_per_batch", 20)
    for train, seeds in ((True, range(5)), (False, [5])):
        split = load("shapes", tmp_path / "new" / "data", train)
        images, labels = (np.concatenate(parts) for parts in zip(*(draw_shapes(20, seed) for seed in seeds), strict=True))
        assert np.array_equal(split.images_nCHW.permute(0, 2, 3, 1).numpy(), images)
        assert split.labels_n.tolist() == labels.tolist()
        assert split.classes == Shapes.names


def test_the_files_are_those_of_cifar10s_python_version(few_shapes_dir):
    """Pickles of protocol 2; whoever names no split gets the training images, as from torchvision."""
    folder = few_shapes_dir / Shapes.base_folder
    batches = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*batches, "md5.json"])
    assert {(folder / name).read_bytes()[:2] for name in batches} == {b"\x80\x02"}
    assert len(Shapes(few_shapes_dir).targets) == 5 * len(Shapes(few_shapes_dir, train=False).targets)
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_set_that_another_process_drew_meanwhile_is_taken(tmp_path, few_shapes_dir, monkeypatch):
    def the_other_was_faster(source, target):
        shutil.copytree(few_shapes_dir / Shapes.base_folder, target)
        raise OSError("there is such a folder")

    monkeypatch.setattr(os, "rename", the_other_was_faster)
    monkeypatch.setattr(Shapes, "images_per_batch", 10)
    assert len(load("shapes", tmp_path)) == 2000
    assert [path.name for path in tmp_path.iterdir()] == [Shapes.base_folder]


def test_a_set_that_cannot_be_put_in_place_leaves_nothing(tmp_path, monkeypatch):
    def fails(source, target):
        raise OSError(1, "forbidden")

    monkeypatch.setattr(os, "rename", fails)
    monkeypatch.setattr(Shapes, "images_per_batch", 10)
    with pytest.raises(MissingDataError, match=r"cannot be created there \(forbidden\)"):
        load("shapes", tmp_path)
    assert not list(tmp_path.iterdir())


def test_large_images_are_composed_a_few_at_a_time():
    tracemalloc.start()
    try:
        draw_shapes(400, seed=1, size=48)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6  # 93 bytes a pixel and image made 86 MB, all at once
