import pytest
import torch

from mae_core.data.images import augment, checksum, load, to_unit
from mae_core.data.shapes import Shapes, draw_shapes


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="not one of shapes, cifar10"):
        load("cifar100")


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


def test_the_checksum_names_the_data(few_shapes_dir, draws_few, tmp_path):
    load("shapes", tmp_path)
    assert checksum("shapes", tmp_path) == checksum("shapes", few_shapes_dir)
    path = tmp_path / Shapes.base_folder / "test_batch"
    path.write_bytes(path.read_bytes() + b" ")
    assert checksum("shapes", tmp_path) != checksum("shapes", few_shapes_dir)
