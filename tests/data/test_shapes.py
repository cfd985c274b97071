import numpy as np
import torch
from torchvision.datasets import CIFAR10

from mae_core.data.images import load
from mae_core.data.shapes import Shapes, draw_shapes, signed_distance


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
