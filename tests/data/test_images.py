import shutil
from pathlib import Path

import pytest
import torch
from photos import write_cifar100
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import crop, hflip, pad
from torchvision.transforms.v2.functional import resize as torchvision_resize

from mae_core.data.images import augment, batches, checksum, held_out, load, place, resize, scale_pixels
from mae_core.data.shapes import Shapes, draw_shapes
from mae_core.errors import MissingDataError, ParameterError


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="not one of shapes, cifar10, cifar100, folder"):
        load("imagenet")


def test_held_out_images_are_evaluated_and_not_trained_on(shapes_dir):
    whole, test = load("shapes", shapes_dir), load("shapes", shapes_dir, train=False)
    kept, held = (load("shapes", shapes_dir, train=train, holdout=600) for train in (True, False))
    assert (len(kept), len(held)) == (len(whole) - 600, 600)

    def numbers(split):
        return [hash(image.numpy().tobytes()) for image in split.images_nCHW]

    places = {number: place for place, number in enumerate(numbers(whole))}
    kept_at, held_at = ([places[number] for number in numbers(split)] for split in (kept, held))
    assert sorted(kept_at + held_at) == list(range(len(whole)))
    assert kept_at == sorted(kept_at)
    assert whole.labels_n[held_at].equal(held.labels_n)
    assert not {*numbers(held)} & {*numbers(test)}
    assert len(held.labels_n.unique()) == 10  # drawn at random: a folder's images are sorted by class
    few = load("shapes", shapes_dir, holdout=600, limit=10)
    assert few.images_nCHW.equal(kept.images_nCHW[:10])
    assert held_at == [places[number] for number in numbers(load("shapes", shapes_dir, train=False, holdout=600))]


def test_some_images_are_left_to_train_on(shapes_dir):
    with pytest.raises(ParameterError, match="holdout is 5000: it must leave some of the 5000 training images"):
        load("shapes", shapes_dir, holdout=5000)


def test_limit_takes_the_first_images(shapes_dir):
    whole, part = load("shapes", shapes_dir), load("shapes", shapes_dir, limit=100)
    assert (len(whole), len(part)) == (5000, 100)
    assert part.images_nCHW.equal(whole.images_nCHW[:100])


def test_shapes_are_drawn_at_any_size_each_in_a_folder_of_its_own(draws_few, tmp_path):
    small, large = load("shapes", tmp_path), load("shapes", tmp_path, image_size=48)
    assert large.images_nCHW.shape == (2000, 3, 48, 48)
    assert large.labels_n.equal(small.labels_n)
    assert {path.name for path in tmp_path.iterdir()} == {"shapes-2-batches-py", "shapes-2-48-batches-py"}
    assert checksum("shapes", tmp_path, 48) != checksum("shapes", tmp_path)


def test_images_of_another_size_are_resized_as_by_torchvision():
    images, _ = draw_shapes(1001, seed=2)
    images_nCHW = torch.from_numpy(images).permute(0, 3, 1, 2)
    for size in (24, 48):
        expected = torchvision_resize(images_nCHW.float(), [size, size], InterpolationMode.BICUBIC, antialias=True)
        assert (resize(images_nCHW, size) - expected.clamp(0, 255)).abs().max() <= 0.501


def test_cifar10_is_resized(cifar10_dir):
    whole = load("cifar10", cifar10_dir, train=False, limit=8)
    large = load("cifar10", cifar10_dir, train=False, limit=8, image_size=64)
    assert large.images_nCHW.equal(resize(whole.images_nCHW, 64))


def test_one_changed_byte_of_resized_images_is_noticed(tmp_path, monkeypatch):
    write_cifar100(tmp_path, monkeypatch)
    first = load("cifar100", tmp_path, image_size=16).images_nCHW.clone()
    path = next((tmp_path / ".mae-cache").glob("cifar100-train-16-*.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert load("cifar100", tmp_path, image_size=16).images_nCHW.equal(first)


def test_pixels_are_scaled_to_minus_one_and_one():
    assert scale_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    steps = scale_pixels(torch.arange(256, dtype=torch.uint8)).diff()
    torch.testing.assert_close(steps, torch.full((255,), 2 / 255))


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


def test_every_shift_and_both_directions_are_drawn_equally_often_and_are_torchvisions_crops():
    """Coordinates as pixels: each view tells which crop it is; torchvision's pad, crop and flip give the same one."""
    image = torch.arange(32 * 32, dtype=torch.int32).reshape(1, 1, 32, 32)
    padded = pad(image.float(), [4, 4, 4, 4], padding_mode="reflect").to(image.dtype)
    n = 81 * 2 * 50
    views = augment(image.expand(n, 1, 32, 32), "crop-flip", torch.Generator().manual_seed(0))
    counts = {}
    for top in range(9):
        for left in range(9):
            view = crop(padded, top, left, 32, 32)
            for flip, expected in ((False, view), (True, hflip(view))):
                counts[top, left, flip] = int((views == expected).flatten(1).all(1).sum())
    assert sum(counts.values()) == n  # every view is one of them
    assert min(counts.values()) > 20  # of 50 expected; fewer than 21 in one case of a million
    assert max(counts.values()) < 90


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_of_a_batch_are_cropped_each_by_itself_and_keep_their_type(dtype):
    batch = torch.randint(256, (64, 3, 32, 32)).to(dtype)
    views = augment(batch, "crop-flip", torch.Generator().manual_seed(0))
    assert views.dtype == dtype
    assert views.shape == batch.shape
    again = augment(batch, "crop-flip", torch.Generator().manual_seed(0))
    assert views.equal(again)
    assert not views.equal(augment(batch, "crop-flip", torch.Generator().manual_seed(1)))


def test_no_augmentation_changes_nothing():
    batch = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert augment(batch, "none") is batch


def test_the_checksum_names_the_data(few_shapes_dir, draws_few, tmp_path):
    load("shapes", tmp_path)
    assert checksum("shapes", tmp_path) == checksum("shapes", few_shapes_dir)
    path = tmp_path / Shapes.base_folder / "test_batch"
    path.write_bytes(path.read_bytes() + b" ")
    assert checksum("shapes", tmp_path) != checksum("shapes", few_shapes_dir)
    with pytest.raises(MissingDataError, match=r"cifar-10-batches-py contains no data files"):
        checksum("cifar10", tmp_path)


def test_a_file_is_read_again_for_its_checksum_only_after_a_change(few_shapes_dir, tmp_path, monkeypatch):
    folder, reads, read = tmp_path / Shapes.base_folder, [], Path.read_bytes
    shutil.copytree(few_shapes_dir / Shapes.base_folder, folder)
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read(path))
    first = checksum("shapes", tmp_path)
    assert checksum("shapes", tmp_path) == first
    assert sorted(reads) == ["batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    reads.clear()
    with (folder / "test_batch").open("ab") as file:
        file.write(b" ")
    assert checksum("shapes", tmp_path) != first
    assert reads == ["test_batch"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("n", [1, 127, 128, 1000, 10000])
def test_batches_cover_every_image_once(n, device):
    slices = batches(n, torch.device(device), n_patches=256)
    assert [i for part in slices for i in range(n)[part]] == list(range(n))
    assert max(part.stop - part.start for part in slices) == (128 if device == "cpu" else 500)


@pytest.mark.parametrize(("n_patches", "size"), [(1, 128), (256, 128), (257, 127), (1024, 32), (4096, 8), (65536, 1)])
def test_images_of_many_patches_come_in_smaller_batches(n_patches, size):
    slices = batches(1000, torch.device("cpu"), n_patches)
    assert {part.stop - part.start for part in slices} == {size}


def test_a_damaged_file_is_told_as_such_and_an_unwritable_folder_too(tmp_path, draws_few):
    load("shapes", tmp_path)
    (tmp_path / Shapes.base_folder / "test_batch").write_bytes(b"")
    with pytest.raises(MissingDataError, match=r"^.*test_batch is damaged"):
        load("shapes", tmp_path, train=False)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(
        MissingDataError, match=r"shapes-2-batches-py/ cannot be created there \([A-Za-z ]+\): check its permissions"
    ):
        load("shapes", tmp_path / "file")


def test_images_held_out_of_a_file_stay_in_it(tmp_path):
    for name in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (16, 16), (20 * i, 40, 100 * (label == "dog"))).save(tmp_path / name / label / f"{i}.png")
    whole = load("folder", tmp_path, image_size=16)
    kept, held = (load("folder", tmp_path, train, limit, 16, holdout=5) for train, limit in ((True, 4), (False, 0)))
    assert [len(split) for split in (kept, held)] == [4, 5]
    held_n, kept_n = held_out(12, 5)
    for split, wanted_n in ((kept, kept_n[:4]), (held, held_n)):
        assert split.file is not None
        assert split.labels_n.equal(whole.labels_n[wanted_n])
        on_host, on_device = (
            place([split], "host", torch.device("cpu"))[0],
            place([split], "device", torch.device("cpu"))[0],
        )
        assert "a memory-mapped file" in on_host.place
        assert not on_host.is_resident
        assert on_device.is_resident
        for part in (slice(1, 3), torch.tensor([3, 0])):
            assert on_host.take(part).equal(whole.images_nCHW[wanted_n][part])
            assert on_device.take(part).equal(on_host.take(part))
            assert next(on_host.stream([part])).equal(on_host.take(part))
