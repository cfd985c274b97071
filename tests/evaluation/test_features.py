"""Vectors of a folder of images."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from mae_core import cli
from mae_core.data.images import scale_pixels
from mae_core.errors import DeviceMemoryError, MissingDataError, OutputError, ParameterError
from mae_core.evaluation.features import Features, in_parts, labels_of, write_features, write_parquet
from mae_core.model.mae import Classifier, MaskedAutoencoder
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.tensors import save_tensors


@pytest.fixture
def weights(tmp_path):
    run = PretrainParameters(width=24, depth=1, decoder_width=24)
    torch.manual_seed(0)
    model = MaskedAutoencoder(run.model).eval()
    save_tensors(tmp_path / "w.safetensors", model.state_dict(), run.flat())
    return model.encoder, tmp_path / "w.safetensors"


@pytest.fixture
def pictures(tmp_path):
    """Six images of 32 × 32 pixels in two classes, by name; with files that are no images of the folder."""
    draw, found = np.random.default_rng(0), {}
    for i in range(6):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        found[f"{'ab'[i % 2]}/{i}.png"] = draw.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(found[f"{'ab'[i % 2]}/{i}.png"]).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "images" / "a" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "images" / ".trash").mkdir()
    (tmp_path / "images" / ".trash" / "0.png").write_bytes(b"no image")
    return tmp_path / "images", dict(sorted(found.items()))


def expected(encoder, pixels, pool):
    images = scale_pixels(torch.from_numpy(np.stack(list(pixels.values()))).permute(0, 3, 1, 2))
    with torch.no_grad():
        tokens = encoder(images)
    return (tokens[:, 0] if pool == "class" else tokens[:, 1:].mean(1)).numpy()


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_every_image_has_its_name_its_class_and_its_vector(weights, pictures, tmp_path, pool, capsys):
    (encoder, path), (folder, pixels) = weights, pictures
    with pytest.raises(SystemExit) as ended:
        cli.main(["features", str(path), str(folder), str(tmp_path / "out.npz"), "--pool", pool])
    assert ended.value.code == 0
    assert "6 images" in capsys.readouterr().out
    with np.load(tmp_path / "out.npz") as found:  # nothing is pickled
        assert found["name"].tolist() == list(pixels)
        assert found["label"].tolist() == ["a", "a", "a", "b", "b", "b"]
        np.testing.assert_allclose(found["vector"], expected(encoder, pixels, pool), rtol=1e-5, atol=1e-5)
        assert found["vector"].dtype == np.float32


def test_images_are_taken_in_parts_where_memory_is_short():
    taken = []

    def vectors_of(images_BCHW):
        if len(images_BCHW) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken.append(len(images_BCHW))
        return images_BCHW.flatten(1)

    pixels_BCHW = torch.arange(7 * 12).reshape(7, 3, 2, 2).byte()
    found = in_parts(vectors_of, pixels_BCHW, torch.device("cpu"))
    assert found.equal(scale_pixels(pixels_BCHW).flatten(1))
    assert taken == [2, 2, 2, 1]
    with pytest.raises(DeviceMemoryError, match="not enough memory on the GPU for one image"):
        in_parts(lambda images_BCHW: vectors_of(torch.zeros(3)), pixels_BCHW, torch.device("cpu"))


def test_the_mean_is_what_the_head_of_a_classifier_reads(pictures, tmp_path):
    run = FinetuneParameters(width=24, depth=1, pooling="mean")
    torch.manual_seed(0)
    model = Classifier(run.model).eval()
    torch.nn.init.normal_(model.encoder.norm.weight)  # otherwise the norm's place would make little difference
    save_tensors(tmp_path / "c.safetensors", model.state_dict(), run.flat())
    found = write_features(str(tmp_path / "c.safetensors"), pictures[0], tmp_path / "out.npz")
    images = scale_pixels(torch.from_numpy(np.stack(list(pictures[1].values()))).permute(0, 3, 1, 2))
    with torch.no_grad():
        scores = model.head(torch.from_numpy(found.vectors_nD))
        torch.testing.assert_close(scores, model(images), rtol=1e-5, atol=1e-5)


def test_a_scale_of_images_that_is_assumed_is_said(pictures, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 32, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, intermediate_size=96)
    transformers.ViTModel(config).save_pretrained(tmp_path / "theirs")
    write_features(str(tmp_path / "theirs"), pictures[0], tmp_path / "out.npz")
    said = f"{tmp_path / 'theirs'}: no preprocessor_config.json beside the weights, so images are scaled to [-1, 1]\n"
    assert said in capsys.readouterr().out


def test_the_label_is_the_class_of_training_however_deep_an_image_lies(weights, pictures, tmp_path):
    folder = pictures[0]
    (folder / "a" / "monday").mkdir()
    (folder / "a" / "0.png").rename(folder / "a" / "monday" / "0.png")
    found = write_features(str(weights[1]), folder, tmp_path / "out.npz")
    assert dict(zip(found.names, found.labels, strict=True))["a/monday/0.png"] == "a"
    assert set(found.labels) == {"a", "b"}


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["train/a/1.png", "test/b/deep/2.png"], ["a", "b"]),  # the folder of a study's data
        (["train/1.png", "val/2.png"], ["", ""]),
        (["train/1.png", "bus/2.png"], ["train", "bus"]),  # classes of vehicles
        (["1.png", "a/2.png"], ["", "a"]),
    ],
)
def test_labels_are_the_classes_of_training(names, labels):
    assert labels_of(names) == labels


def test_images_without_classes_have_no_label(weights, pictures, tmp_path):
    found = write_features(str(weights[1]), pictures[0] / "a", tmp_path / "out.npz")
    assert found.names == ["0.png", "2.png", "4.png"]
    assert found.labels == ["", "", ""]


def test_parquet_holds_the_same(weights, pictures, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = write_features(str(weights[1]), pictures[0], tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["name", "label", "vector"]
    assert table["name"].to_pylist() == found.names
    assert table["label"].to_pylist() == found.labels
    assert np.array(table["vector"].to_pylist(), np.float32).tolist() == found.vectors_nD.tolist()


def test_parquet_takes_names_that_are_no_text(tmp_path):
    """Bytes that are not UTF-8 become escapes; every other name stays as it is, as in .npz."""
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ["caf\udce9.png", "at 9.41\u202fAM.png"]
    write_parquet(tmp_path / "out.parquet", Features(names, ["\udce9", ""], np.zeros((2, 3), np.float32)))
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["name"].to_pylist() == ["caf\\udce9.png", names[1]]
    assert table["label"].to_pylist() == ["\\udce9", None]


def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match=r"file/out.npz cannot be written"):
        write_features("missing", tmp_path, tmp_path / "file" / "out.npz")


def test_parquet_without_pyarrow_is_told_before_anything_is_computed(weights, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParameterError, match=r"Parquet needs pyarrow .pip install pyarrow.; .npz needs nothing more"):
        write_features("missing", pictures[0], tmp_path / "out.parquet")


def test_what_cannot_be_used_is_named(weights, pictures, tmp_path):
    folder, _ = pictures
    with pytest.raises(ParameterError, match=r"out.csv ends in '.csv': it must end in .npz or .parquet"):
        write_features(str(weights[1]), folder, tmp_path / "out.csv")
    (tmp_path / "images" / "empty").mkdir()
    with pytest.raises(MissingDataError, match=r"contains no images \(\.jpg .*\): name another folder"):
        write_features(str(weights[1]), folder / "empty", tmp_path / "out.npz")
    with pytest.raises(MissingDataError, match="is no folder: name a folder of images"):
        write_features(str(weights[1]), folder / "nowhere", tmp_path / "out.npz")
    with pytest.raises(ParameterError, match="there is no such file"):
        write_features(str(tmp_path / "missing"), folder, tmp_path / "out.npz")
    (folder / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(MissingDataError, match=r"broken.png cannot be decoded .*: repair it, or move it elsewhere"):
        write_features(str(weights[1]), folder, tmp_path / "out.npz")
    (folder / "a" / "broken.png").unlink()
    with pytest.raises(OutputError, match="cannot be written"):
        write_features(str(weights[1]), folder, tmp_path / "w.safetensors" / "out.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"images", "w.safetensors"}
