import contextlib
import fcntl
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from photos import write_cifar100
from torchvision.datasets import CIFAR10, CIFAR100

from mae_core.data import cifar
from mae_core.data.cifar import CheckedCIFAR10
from mae_core.data.images import checksum, load
from mae_core.data.shapes import Shapes
from mae_core.errors import MissingDataError
from mae_core.locks import held


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


# A set of the same format with 10 images a file ---------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """A function that writes the set into a folder, as the download does; the n-th file's labels and pixels are n."""

    def write(folder):
        def dump(name, content):
            raw = pickle.dumps(content, protocol=2)
            (Path(folder) / CIFAR10.base_folder / name).write_bytes(raw)
            return [name, hashlib.md5(raw).hexdigest()]

        (Path(folder) / CIFAR10.base_folder).mkdir()
        batches = [{"data": np.full((10, 3072), n, np.uint8), "labels": [n] * 10} for n in range(1, 7)]
        listed = [dump(f"batch_{n}", batch) for n, batch in enumerate(batches, 1)]
        name, md5 = dump("meta", {"label_names": list("abcdefghij")})
        monkeypatch.setattr(CIFAR10, "train_list", listed[:5])
        monkeypatch.setattr(CIFAR10, "test_list", listed[5:])
        monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})

    return write


def test_a_download_is_done_once_and_put_into_data_dir_whole(small, tmp_path, monkeypatch):
    seen = []

    def download(url, root, filename, md5):
        seen.append((url, filename, md5))
        assert Path(root).parent == tmp_path / "new" / "data"  # the same disk: the folder can be moved
        small(root)

    monkeypatch.setattr(cifar, "download_and_extract_archive", download)
    splits = [load("cifar10", tmp_path / "new" / "data", train=train) for train in (True, False, True)]
    assert seen == [(CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5)]
    assert [len(split) for split in splits] == [50, 10, 50]
    assert {path.name for path in (tmp_path / "new" / "data").iterdir()} == {CIFAR10.base_folder, ".download.lock"}


def test_what_another_process_downloaded_meanwhile_is_taken(small, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def wait_for_the_other(lock):
        small(tmp_path)
        yield

    monkeypatch.setattr(cifar, "held", wait_for_the_other)
    monkeypatch.setattr(cifar, "download", lambda data_dir: pytest.fail("it downloads once more"))
    assert len(load("cifar10", tmp_path)) == 50


def test_without_locks_the_slower_of_two_downloads_takes_what_the_other_has_put_there(small, tmp_path, monkeypatch):
    def download(url, root, filename, md5):
        small(root)
        small(tmp_path)  # the other process ends first

    monkeypatch.setattr("mae_core.locks.acquire", lambda file, wait: False)
    monkeypatch.setattr(cifar, "download_and_extract_archive", download)
    assert len(load("cifar10", tmp_path)) == 50
    assert {path.name for path in tmp_path.iterdir()} == {CIFAR10.base_folder, ".download.lock"}


def test_a_download_that_cannot_be_put_in_place_is_told_and_leaves_nothing(small, tmp_path, monkeypatch):
    def fails(source, target):
        raise OSError(1, "forbidden")

    monkeypatch.setattr(cifar, "download_and_extract_archive", lambda url, root, filename, md5: small(root))
    monkeypatch.setattr(cifar.os, "rename", fails)
    with pytest.raises(MissingDataError, match=r"CIFAR-10 is not in data_dir .*forbidden"):
        load("cifar10", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".download.lock"}


def test_images_labels_and_classes_keep_the_order_of_the_files(small, tmp_path):
    small(tmp_path)
    assert CheckedCIFAR10(tmp_path).targets == [n for n in range(1, 6) for _ in range(10)]
    for train, numbers in ((True, range(1, 6)), (False, [6])):
        split = CheckedCIFAR10(tmp_path, train)
        assert split.data.shape == (10 * len(numbers), 32, 32, 3)
        assert split.data[:, 0, 0, 0].tolist() == split.targets == [n for n in numbers for _ in range(10)]
        assert split.classes == list("abcdefghij")


def test_cifar100_is_read_with_its_fine_labels_from_checked_files(tmp_path, monkeypatch):
    write_cifar100(tmp_path, monkeypatch)
    train, test = load("cifar100", tmp_path), load("cifar100", tmp_path, train=False)
    assert (len(train), len(test)) == (300, 200)
    assert train.classes == tuple(f"class {n}" for n in range(100))
    assert test.labels_n.tolist() == [n % 100 for n in range(200)]
    assert test.images_nCHW[:, 0, 0, 0].tolist() == [n % 100 for n in range(200)]
    before = checksum("cifar100", tmp_path)
    path = tmp_path / CIFAR100.base_folder / "test"
    path.write_bytes(path.read_bytes() + b" ")
    assert checksum("cifar100", tmp_path) != before
    with pytest.raises(MissingDataError, match=r"cifar-100-python/test is damaged"):
        load("cifar100", tmp_path, train=False)


def test_a_missing_cifar100_is_downloaded_as_torchvision_names_it(tmp_path, monkeypatch):
    seen = []

    def download(url, root, filename, md5):
        seen.append((url, filename, md5))
        write_cifar100(Path(root), monkeypatch)

    monkeypatch.setattr(cifar, "download_and_extract_archive", download)
    assert len(load("cifar100", tmp_path)) == 300
    assert seen == [(CIFAR100.url, CIFAR100.filename, CIFAR100.tgz_md5)]


def test_a_lock_keeps_others_out_until_it_is_left(tmp_path):
    lock = tmp_path / "a" / "b" / "lock"
    with held(lock), lock.open("r+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with held(lock):
        pass
    with lock.open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
