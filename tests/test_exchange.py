"""docs/exchange.md says what works: its commands and its snippets run as they stand."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_core import cli
from mae_core.data.images import scale_pixels
from mae_core.explore.trained import open_classifier
from mae_core.study.results import read_json

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "exchange.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^(mae-core .*)$", PAGE, re.MULTILINE)
RUN = "outputs/laptop/random-75/seed0"

pytest.importorskip("timm")
pytest.importorskip("transformers")
pq = pytest.importorskip("pyarrow.parquet")


def run(command):
    _, *words = shlex.split(command)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the published runs and a picture."""
    (tmp_path / "outputs").symlink_to(ROOT / "outputs")
    (tmp_path / "my-images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / "picture.png")
    (tmp_path / "my-images" / "a.png").write_bytes((tmp_path / "picture.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs_as_it_stands(place):
    export, npz, parquet = COMMANDS
    run(export)
    ours = open_classifier(Path(f"{RUN}/finetune/weights.bfloat16.safetensors"), torch.device("cpu"))
    pixels = torch.from_numpy(np.array(Image.open("picture.png"))).permute(2, 0, 1)[None]
    classes = read_json(Path(f"{RUN}/finetune/metrics.json"))["predictions"]["classes"]
    with torch.no_grad():
        expected, tokens = ours(scale_pixels(pixels)), ours.encoder(scale_pixels(pixels))
    timm, transformers, tensors = SNIPPETS
    for snippet in (timm, transformers):
        told: dict = {}
        exec(snippet, told)
        torch.testing.assert_close(told["scores"], expected, rtol=1e-5, atol=1e-5)
        assert told["name"] == classes[expected.argmax()]
    told = {}
    exec(tensors, told)
    assert told["width"] == 96
    assert told["n_parameters"] == sum(p.numel() for p in ours.parameters())
    run(npz)
    with np.load("vectors.npz") as found:
        assert found["vector"].shape == (1, 96)
    pooled = {parquet: tokens[:, 0], parquet.replace(" --pool class", ""): tokens[:, 1:].mean(1)}
    assert len(pooled) == 2
    for command, vectors in pooled.items():
        run(command)
        found = torch.tensor(pq.read_table("vectors.parquet")["vector"].to_pylist())
        torch.testing.assert_close(found, vectors, rtol=1e-5, atol=1e-5)
