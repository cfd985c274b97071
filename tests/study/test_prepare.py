from pathlib import Path

import numpy as np
import pytest
from photos import write_cifar100
from PIL import Image

from mae_core.data import cifar
from mae_core.errors import ParameterError
from mae_core.study.prepare import prepare_images
from mae_core.study.study import Study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of twelve images of one's own, and a function that makes it with other values."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(np.full((20, 24, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
    shared = {"dataset": "folder", "data_dir": "pets", "image_size": 16, "batch_size": 4}
    return lambda **more: Study.check(
        {"study": "own", "seeds": [0], "shared": shared | more, "cases": {"random-75": {}, "scratch": None}}
    )


def test_images_are_decoded_before_the_first_run(study, tmp_path):
    prepare_images(study())
    assert len(list((tmp_path / "pets" / ".mae-cache").glob("*16*"))) >= 2


def test_a_file_that_cannot_be_decoded_starts_nothing(study, tmp_path):
    (tmp_path / "pets" / "test" / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(ParameterError, match=r"these files in .*pets cannot be decoded: test/cat/2.png"):
        prepare_images(study())


def test_an_empty_class_and_a_link_that_leads_out_start_nothing(study, tmp_path):
    folder = tmp_path / "pets" / "train" / "cat"
    (folder / "away.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(ParameterError, match=r"away.png is a link that leads out"):
        prepare_images(study())
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ParameterError, match=r"the class 'cat' in .* has no images"):
        prepare_images(study())


def test_a_batch_larger_than_the_data_starts_nothing(study):
    with pytest.raises(ParameterError, match="batch_size is 7: there are only 6 training images in pets"):
        prepare_images(study(batch_size=7))


def test_cifar_is_there_before_the_first_run(study, tmp_path, monkeypatch):
    asked = []

    def download(url, root, filename, md5):
        asked.append(filename)
        write_cifar100(Path(root), monkeypatch)

    monkeypatch.setattr(cifar, "download_and_extract_archive", download)
    cifar100 = study(dataset="cifar100", data_dir="data")
    prepare_images(cifar100, [])
    assert not asked
    prepare_images(cifar100, [("scratch", "finetune")])
    prepare_images(cifar100)
    assert asked == ["cifar-100-python.tar.gz"]
    assert len(list((tmp_path / "data" / ".mae-cache").glob("cifar100-*-16-*.npy"))) == 2
    path = tmp_path / "data" / "cifar-100-python" / "test"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ParameterError, match=r"cifar-100-python/test is damaged"):
        prepare_images(cifar100)


def test_a_data_set_that_cannot_be_downloaded_starts_nothing(study, monkeypatch):
    def no_network(*words, **more):
        raise OSError("no network")

    monkeypatch.setattr(cifar, "download_and_extract_archive", no_network)
    with pytest.raises(
        ParameterError, match=r"CIFAR-10 is not in data_dir \(data\) and could not be downloaded \(no network\)"
    ):
        prepare_images(study(dataset="cifar10", data_dir="data"))


def test_a_study_of_other_images_needs_no_preparation(study, tmp_path):
    prepare_images(study(dataset="shapes", data_dir="nowhere", image_size=32))
    assert not (tmp_path / "nowhere").exists()


def test_the_largest_batch_and_the_sweep_count(study, tmp_path):
    content = {"study": "own", "seeds": [0], "shared": {"dataset": "folder", "data_dir": "pets", "image_size": 16}}
    content |= {"cases": {"random-75": {}}, "pretrain": {"batch_size": 7}, "finetune": {"batch_size": 4}}
    with pytest.raises(ParameterError, match="batch_size is 7: there are only 6"):
        prepare_images(Study.check(content))
    swept = content | {"pretrain": {"batch_size": 4}, "sweep": {"random-50": {"mask_ratio": 0.5, "batch_size": 8}}}
    with pytest.raises(ParameterError, match="batch_size is 8: there are only 6"):
        prepare_images(Study.check(swept))
