import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import halves, pictures, write
from PIL import Image

from mae_core.data import folder, store
from mae_core.data.decode import decode
from mae_core.data.images import Split, checksum, load, place
from mae_core.data.layout import check_layout, list_images
from mae_core.errors import MissingDataError


def save(path, picture=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture or halves((30, 30))).save(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def photos(written, tmp_path, monkeypatch):
    """A folder of one's own; beside it the working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Path(shutil.copytree(written, tmp_path / "photos"))


@pytest.fixture
def decoded(monkeypatch):
    """The list of decodings done."""
    done = []
    monkeypatch.setattr(folder, "decode", lambda content, side: done.append(side) or decode(content, side))
    return done


def test_images_labels_and_classes_are_those_of_the_files(photos):
    for part in ("train", "test"):
        split = load("folder", photos, part == "train", image_size=24)
        listing = list_images(photos)[part == "test"]
        assert split.images_nCHW.shape == (22, 3, 24, 24)
        assert split.classes == ('it\'s "blue"\\n$x$', "red sky")
        assert split.labels_n.bincount().tolist() == [11, 11]
        assert all(name.startswith(f"{part}/") for name in listing.names)
        for image_CHW, label, name in zip(split.images_nCHW, split.labels_n, listing.names, strict=True):
            assert name.split("/")[1].startswith("red") == bool(label)
            assert np.array_equal(image_CHW.permute(1, 2, 0), decode(photos / name, 24))
    assert len(set(load("folder", photos, limit=10, image_size=24).labels_n.tolist())) == 2  # classes are mixed


def test_images_are_decoded_once_for_each_size(photos, decoded):
    first = load("folder", photos, image_size=16)
    assert len(decoded) == 22
    assert load("folder", photos, image_size=16).images_nCHW.equal(first.images_nCHW)
    assert len(decoded) == 22
    load("folder", photos, image_size=24)
    assert decoded[22:] == [24] * 22
    assert {path.suffix for path in (photos / store.CACHE).iterdir()} == {".npy", ".json", ""}
    assert len(list((photos / store.CACHE).glob("*.npy"))) == 2


def added(photos):
    save(photos / "train" / "red sky" / "new.png")


def removed(photos):
    (photos / "train" / "red sky" / "web.webp").unlink()


def renamed(photos):
    (photos / "train" / "red sky" / "web.webp").rename(photos / "train" / "red sky" / "b.webp")


def changed(photos):
    save(photos / "train" / "red sky" / "small.png", halves((24, 30), "white", "white"))


def touched(photos):
    os.utime(photos / "train" / "red sky" / "small.png", ns=(1, 1))


def test_images_that_change_places_are_decoded_again_though_sizes_and_times_stay(photos, decoded):
    paths = [photos / "train" / name for name in ("red sky/a.bmp", "red sky/b.bmp")]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        save(path, halves((24, 30), colour, colour))
        os.utime(path, ns=(1, 1))
    before, md5 = load("folder", photos, image_size=16), checksum("folder", photos, 16)
    first, second = (path.read_bytes() for path in paths)
    for path, content in zip(paths, (second, first), strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
    after = load("folder", photos, image_size=16)
    assert not after.images_nCHW.equal(before.images_nCHW)
    assert checksum("folder", photos, 16) != md5


@pytest.mark.parametrize("change", [added, removed, renamed, changed, touched])
def test_a_changed_folder_is_decoded_again_and_the_old_file_deleted(photos, decoded, change):
    before, md5 = load("folder", photos, image_size=16), checksum("folder", photos, 16)
    old = set((photos / store.CACHE).glob("*.npy"))
    change(photos)
    decoded.clear()
    after = load("folder", photos, image_size=16)
    assert len(decoded) == len(after) == 22 + (change is added) - (change is removed)
    now = set((photos / store.CACHE).glob("*.npy"))
    assert len(now) == 1
    assert now != old
    assert after.images_nCHW.equal(before.images_nCHW) == (change is touched)
    assert (checksum("folder", photos, 16) == md5) == (change is touched)


def test_the_checksum_is_that_of_names_and_contents_whether_decoded_or_not(photos, tmp_path):
    before = checksum("folder", photos, 16)
    load("folder", photos, image_size=16)
    load("folder", photos, train=False, image_size=16)
    moved = shutil.copytree(photos, tmp_path / "moved", copy_function=shutil.copyfile)
    assert before == checksum("folder", photos, 16) == checksum("folder", photos, 24) == checksum("folder", moved, 16)


def test_a_damaged_file_of_decoded_images_is_made_again(photos, decoded):
    first = load("folder", photos, image_size=16).images_nCHW.clone()
    path = next((photos / store.CACHE).glob("*.npy"))
    path.write_bytes(path.read_bytes()[:1000])
    assert load("folder", photos, image_size=16).images_nCHW.equal(first)
    assert len(decoded) == 44


@pytest.mark.parametrize("place", [0, -1])  # in the header, in the last image
def test_one_changed_byte_of_the_decoded_images_is_noticed_and_told_once(photos, decoded, capsys, place):
    first = load("folder", photos, image_size=16).images_nCHW.clone()
    path = next((photos / store.CACHE).glob("*.npy"))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    for _ in range(2):
        assert load("folder", photos, image_size=16).images_nCHW.equal(first)
    assert len(decoded) == 44
    assert capsys.readouterr().out == f"{path} is damaged, or has no checksum: its images are prepared anew\n"


@pytest.mark.parametrize(
    ("ending", "spoil"),
    [
        ("npy", lambda content: b""),
        ("npy", lambda content: content.replace(b"(22,", b"((2,")),
        ("json", lambda content: b"[]"),
        ("json", lambda content: b'"text"'),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_a_spoilt_file_of_the_store_is_made_again(photos, decoded, ending, spoil, check):
    first = load("folder", photos, image_size=16).images_nCHW.clone()
    path = next((photos / store.CACHE).glob(f"*.{ending}"))
    assert spoil(path.read_bytes()) != path.read_bytes()
    path.write_bytes(spoil(path.read_bytes()))
    assert load("folder", photos, image_size=16, check=check).images_nCHW.equal(first)
    assert len(decoded) == 44


def test_a_changed_note_on_the_decoded_images_is_noticed(photos, decoded):
    """It holds the MD5 that a run's provenance tells."""
    before = checksum("folder", photos, 16)
    for part in (True, False):
        load("folder", photos, part, image_size=16)
    path = next((photos / store.CACHE).glob("train-*.json"))
    path.write_text(path.read_text("utf-8").replace('"md5": "', '"md5": "0'), encoding="utf-8")
    assert checksum("folder", photos, 16) != before
    load("folder", photos, image_size=16)
    assert len(decoded) == 66
    assert checksum("folder", photos, 16) == before


def test_images_that_were_decoded_before_there_were_checksums_are_decoded_again_once(photos, decoded):
    load("folder", photos, image_size=16)
    path = next((photos / store.CACHE).glob("*.json"))
    about = json.loads(path.read_text("utf-8"))
    del about["crc32"]
    path.write_text(json.dumps(about), encoding="utf-8")
    for _ in range(2):
        load("folder", photos, image_size=16)
    assert len(decoded) == 44


def test_to_look_at_images_their_file_is_not_read_as_a_whole(photos, monkeypatch):
    first = load("folder", photos, image_size=16).images_nCHW.clone()
    monkeypatch.setattr(store, "checksum", lambda path, about: pytest.fail("it reads the whole file"))
    assert load("folder", photos, image_size=16, check=False).images_nCHW.equal(first)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENODEV])
def test_a_system_that_maps_no_file_is_told(photos, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.np, "load", refuse)
    with pytest.raises(MissingDataError, match=r"\.npy cannot be mapped into memory \(.*\): raise the limit of memory"):
        load("folder", photos, image_size=16)


def test_two_runs_at_once_decode_once(photos, decoded):
    together, found = threading.Barrier(3), []

    def read():
        together.wait()
        found.append(load("folder", photos, image_size=16).images_nCHW)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(decoded) == 22
    assert all(images.equal(found[0]) for images in found)


KILLED = """
import os, sys
from mae_core.data import folder, images
folder.decode = lambda content, side: os._exit(9)
images.load("folder", sys.argv[1], image_size=16)
"""


def test_a_killed_decoding_leaves_nothing_that_counts(photos, decoded):
    done = subprocess.run([sys.executable, "-c", KILLED, photos], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 9
    assert list((photos / store.CACHE).glob(".unfinished-*"))
    assert len(load("folder", photos, image_size=16)) == len(decoded) == 22
    assert not list((photos / store.CACHE).glob(".unfinished-*"))


def test_without_locks_what_another_process_has_not_finished_stays(photos, monkeypatch):
    other = photos / store.CACHE / ".unfinished-of-another-machine-1"
    other.parent.mkdir()
    other.write_bytes(b"half of the images")
    monkeypatch.setattr("mae_core.locks.acquire", lambda file, wait: False)
    assert len(load("folder", photos, image_size=16)) == 22
    assert other.exists()


def test_where_the_data_cannot_be_written_the_working_folder_holds_the_decoded_images(photos, tmp_path, decoded):
    (photos / store.CACHE).write_bytes(b"a file, so that there can be no folder")
    for _ in range(2):
        assert len(load("folder", photos, image_size=16)) == 22
    assert len(decoded) == 22
    assert len(list((tmp_path / "here" / "data" / store.CACHE).glob("*/train-16-*.npy"))) == 1
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    Path("data").write_bytes(b"a file, too")
    with pytest.raises(MissingDataError, match=r"neither beside the data nor here .*: make one of these folders writable$"):
        load("folder", photos, image_size=16)


def test_a_full_disk_is_told_before_anything_is_decoded(photos, decoded, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(MissingDataError, match=r"needs 0 MB for the prepared images, and has 0 MB: free some space"):
        load("folder", photos, image_size=16)
    assert not decoded


def test_val_is_taken_where_there_is_no_test(photos):
    (photos / "test").rename(photos / "val")
    assert all(name.startswith("val/") for name in list_images(photos)[1].names)
    assert len(load("folder", photos, train=False, image_size=16)) == 22


@pytest.mark.parametrize("within", ["", "train"])
def test_images_without_classes_are_read_and_a_tenth_is_set_aside(tmp_path, within):
    for i in range(30):
        save(tmp_path / within / f"{i}.png", Image.new("RGB", (16, 16), (i, 0, 0)))
    train, test = (load("folder", tmp_path, train=part, image_size=16) for part in (True, False))
    assert (len(train), len(test)) == (27, 3)
    assert train.classes == ()
    assert train.labels_n.tolist() == [-1] * 27
    reds = [image[0, 0, 0].item() for split in (train, test) for image in split.images_nCHW]
    assert sorted(reds) == list(range(30))
    if within:
        save(tmp_path / "test" / "a.png")
        assert [len(listing.names) for listing in list_images(tmp_path)] == [30, 1]


def test_what_lies_beside_the_images_does_not_matter(tmp_path):
    save(tmp_path / "own" / "a.png")
    save(tmp_path / "own" / "b.png")
    (tmp_path / "own" / "elsewhere").symlink_to(tmp_path)
    (tmp_path / "own" / "notes.txt").symlink_to(tmp_path / "nowhere")
    save(tmp_path / "own" / "more" / "c.png")
    assert [len(listing.names) for listing in list_images(tmp_path / "own")] == [1, 1]


def test_a_single_image_is_not_enough(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(MissingDataError, match=r"holds one image only, which is set aside for testing: put more there"):
        list_images(tmp_path)


def test_links_within_the_folder_are_followed_but_not_in_circles(photos):
    (photos / "train" / "red sky" / "again.png").symlink_to(photos / "train" / "red sky" / "small.png")
    (photos / "train" / "red sky" / "round").symlink_to(photos / "train" / "red sky")
    (photos / "train" / "red sky" / "deep").mkdir()
    save(photos / "train" / "red sky" / "deep" / "more.png")
    assert len(list_images(photos)[0].names) == 24
    for name, other in (("red sky", "deep one"), ("deep one", "red sky")):  # two folders that lead to each other
        save(photos / "train" / name / "deep" / f"of {name}.png")
        (photos / "train" / name / "to the other").symlink_to(photos / "train" / other)
    (photos / "test" / "deep one").mkdir()
    save(photos / "test" / "deep one" / "a.png")
    names = list_images(photos)[0].names
    assert len(names) == len(set(names))
    assert sum(name.endswith("of deep one.png") for name in names) == 2  # as its own, and as the other's
    shutil.rmtree(photos / "train" / "deep one")
    shutil.rmtree(photos / "test" / "deep one")
    (photos / "train" / "red sky" / "to the other").unlink()
    (photos / "train" / "red sky" / "deep" / "of red sky.png").unlink()
    (photos.parent / "way").symlink_to(photos)  # the folder itself may be a link
    assert len(list_images(photos.parent / "way")[0].names) == 24


# What is wrong with a folder, and what is said about it ---------------------------------------------------------------


def truncated(photos):
    path = photos / "train" / "red sky" / "large.jpg"
    path.write_bytes(path.read_bytes()[:1000])
    return r"these files in .* cannot be decoded: train/red sky/large\.jpg \(.*truncated.*\); repair or remove them"


def many_broken(photos):
    for name in pictures():
        (photos / "train" / "red sky" / name).write_bytes(b"no image")
    return (
        r"cannot be decoded: (train/red sky/[^\n]+? \(it is no image in a format that can be read\),? ?){3}.* and 8 more;"
    )


def from_a_phone(photos):
    (photos / "train" / "red sky" / "IMG_1.HEIC").write_bytes(b"....ftypheic....")
    return r"cannot be decoded: train/red sky/IMG_1\.HEIC \(it is no image in a format that can be read\); repair"


def a_bomb(photos):
    save(photos / "test" / "red sky" / "bomb.png", Image.new("1", (20_000, 20_000)))
    return r"test/red sky/bomb\.png \(it has more than 178,956,970 pixels: make it smaller\)"


def an_empty_class(photos):
    for part in ("train", "test"):
        (photos / part / "nothing").mkdir()
        (photos / part / "nothing" / "notes.txt").touch()
    return r"the class 'nothing' in .* has no images in train/, or none in test/ or val/"


def no_images(photos):
    for part in ("train", "test"):
        shutil.rmtree(photos / part)
        (photos / part).mkdir()
    return r"holds no images \(\.jpg .*\): put some into train/<class>/"


def nothing_at_all(photos):
    shutil.rmtree(photos / "train")
    shutil.rmtree(photos / "test")
    return r"it has neither train/ nor images; it must hold train/<class>/"


def no_test(photos):
    shutil.rmtree(photos / "test")
    return r"it has train/, but neither test/ nor val/"


def another_class_in_test(photos):
    save(photos / "test" / "a 'new' one" / "a.png")
    return r"the class \"a 'new' one\" is in test/ and not in train/"


def a_class_less_in_test(photos):
    shutil.rmtree(photos / "test" / "red sky")
    return r"the class 'red sky' is in train/ and not in test/"


def images_among_classes(photos):
    save(photos / "train" / "stray.png")
    return r"train holds both images and folders, such as .*: move the images into the folders of their classes"


def images_among_classes_in_test(photos):
    save(photos / "test" / "stray.png")
    return r"test holds both images and folders, such as "


def flat_test_images(photos):
    shutil.rmtree(photos / "test")
    save(photos / "test" / "1.png")
    return r"the class .* is in train/ and not in test/"


def images_beside_a_folder_without_any(photos):
    shutil.rmtree(photos)
    save(photos / "train" / "a.png")
    (photos / "train" / "notes").mkdir()
    return r"train holds both images and folders, such as notes/"


def accents_of_another_kind(photos):
    (photos / "train" / "red sky").rename(photos / "train" / "caf\u00e9")
    (photos / "test" / "red sky").rename(photos / "test" / "cafe\u0301")
    return r"is written with other characters in test/ than in train/, though both look the same: rename"


def a_link_to_itself(photos):
    (photos / "train" / "red sky" / "link.png").symlink_to("link.png")
    return r"red sky/link\.png is a link that leads out of .*, or nowhere"


def a_pipe(photos):
    os.mkfifo(photos / "test" / "red sky" / "pipe.png")
    return r"red sky/pipe\.png is no file: remove it"


def a_link_out(photos):
    save(photos.parent / "elsewhere.png")
    (photos / "train" / "red sky" / "link.png").symlink_to(photos.parent / "elsewhere.png")
    return r"red sky/link\.png is a link that leads out of .*: put the images themselves there"


def a_folder_out(photos):
    shutil.move(photos / "train" / "red sky", photos.parent / "elsewhere")
    (photos / "train" / "red sky").symlink_to(photos.parent / "elsewhere")
    return r"red sky is a link that leads out of"


def a_link_nowhere(photos):
    (photos / "train" / "red sky" / "link.png").symlink_to(photos / "nowhere.png")
    return r"red sky/link\.png is a link that leads out of .*, or nowhere"


BROKEN = (
    truncated, many_broken, from_a_phone, a_bomb, an_empty_class, no_images, nothing_at_all, no_test, another_class_in_test,
    a_class_less_in_test, images_among_classes, images_among_classes_in_test, images_beside_a_folder_without_any,
    flat_test_images, accents_of_another_kind, a_link_out, a_folder_out, a_link_nowhere, a_link_to_itself, a_pipe,
)  # fmt: skip


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_folder_that_cannot_be_used_is_told_in_one_sentence_and_nothing_is_kept(photos, spoil):
    sentence = spoil(photos)
    with pytest.raises(MissingDataError, match=sentence) as error:
        [load("folder", photos, part, image_size=16) for part in (False, True)]
    assert "\n" not in str(error.value)
    assert not list((photos / store.CACHE).glob("train-*"))


def test_what_can_be_pre_trained_on_but_not_classified_is_told(photos, tmp_path):
    for part in ("train", "test"):
        shutil.rmtree(photos / part / "red sky")
    check_layout(photos)
    with pytest.raises(MissingDataError, match=r"it holds images of one class only, which can be pre-trained on"):
        check_layout(photos, needs_classes=True)
    save(tmp_path / "plain" / "a.png")
    check_layout(tmp_path / "plain")
    with pytest.raises(MissingDataError, match=r"it holds images without classes, which can be pre-trained on"):
        check_layout(tmp_path / "plain", needs_classes=True)
    with pytest.raises(MissingDataError, match=r"there is no such folder"):
        check_layout(tmp_path / "nowhere")


# On the device, or on the host -----------------------------------------------------------------------------------------


def test_images_on_the_host_are_those_on_the_device_in_any_order(photos):
    cpu, split = torch.device("cpu"), load("folder", photos, image_size=16)
    (there,), (here,) = (place([split], where, cpu) for where in ("device", "host"))
    assert there.is_resident
    assert not here.is_resident
    assert "memory-mapped file" in here.place
    parts = [torch.tensor([3, 1, 21]), slice(5, 9), slice(20, 30)]
    for first, second in zip(there.stream(parts), here.stream(parts), strict=True):
        assert first.equal(second)
    for part in parts:
        assert there.take(part).equal(here.take(part))
    copy = here.take(slice(3))
    copy += 1  # a copy: the file stays as it is
    assert here.take(slice(3)).equal(copy - 1)


def test_auto_keeps_images_on_the_host_that_take_more_than_half_of_the_memory(monkeypatch):
    split, cpu = Split(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.zeros(10), ()), torch.device("cpu")
    for available, where in (
        (2 * 1920, "images in memory"),
        (2 * 1920 - 2, "images batch by batch from the host's memory"),
    ):
        monkeypatch.setattr("mae_core.data.images.available_memory", lambda device, there=available: there)
        assert place([split], "auto", cpu)[0].place.startswith(where)


def test_a_reader_that_is_left_ends_its_thread(photos):
    split = place([load("folder", photos, image_size=16)], "host", torch.device("cpu"))[0]
    before = threading.active_count()
    images = split.stream([slice(0, 5), slice(5, 9), slice(9, 12)])
    next(images)
    images.close()
    assert threading.active_count() == before


def test_the_bytes_of_a_picture_and_its_file_give_the_same_pixels(photos):
    path = photos / "train" / "red sky" / "large.jpg"
    assert np.array_equal(decode(path, 16), decode(path.read_bytes(), 16))
    assert np.array_equal(decode(io.BytesIO(path.read_bytes()).getvalue(), 16), decode(path, 16))
