import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
UNPACK = ROOT.parent / "shared" / "data" / "unpack_cifar10.py"
TINY = {"width": 24, "depth": 1, "decoder_width": 24, "train_images": 512, "epochs": 2, "threads": 1}


LONGEST = (
    "processes", "places", "workflow", "gpu", "notebooks", "checkpoint", "survival", "reproduce", "benchmarks", "wheel",
    "published", "own_images", "pages", "runs", "replicas", "folder", "input", "step",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Run the longest files first, so that two workers that share the files finish at nearly the same time."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """A folder with the synthetic data set."""
    from mae_core.data.images import load

    folder = tmp_path_factory.mktemp("shapes")
    load("shapes", folder)
    return folder


@pytest.fixture
def draws_few(monkeypatch):
    """Draw the synthetic data set with fewer images: 2,000 for training, 400 for testing."""
    from mae_core.data.shapes import Shapes

    monkeypatch.setattr(Shapes, "images_per_batch", 400)


@pytest.fixture(scope="session")
def few_shapes_dir(tmp_path_factory):
    """A folder with fewer images: reading and evaluating all of them would dominate a run of one second."""
    from mae_core.data.images import load
    from mae_core.data.shapes import Shapes

    folder = tmp_path_factory.mktemp("few-shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "images_per_batch", 400)
        load("shapes", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_values(few_shapes_dir):
    """Parameters of a run that takes half a second."""
    return {**TINY, "data_dir": str(few_shapes_dir)}


@pytest.fixture
def tiny(tmp_path, monkeypatch, tiny_values):
    """Parameters of a run that takes half a second; results go to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return dict(tiny_values)


@pytest.fixture(scope="session")
def cifar10_dir():
    """A folder with CIFAR-10; skips the test with a reason if there is none."""
    from mae_core.locks import held

    folder = ROOT / "data"
    last = folder / "cifar-10-batches-py" / "batches.meta"  # the last file that is written
    if not last.exists() and not UNPACK.exists():
        pytest.skip("CIFAR-10 is not in data/, and there is no ../shared/data to unpack it from")
    if not last.exists():
        with held(folder / ".unpack.lock"):
            if not last.exists():  # another process may have unpacked it meanwhile
                subprocess.run([sys.executable, UNPACK, folder], check=True)
    return folder


@pytest.fixture(scope="session")
def vitmae():
    """A function that builds a small ViTMAE of transformers, with more settings of its configuration."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed: pip install -e '.[dev]'")
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    def build(**more):
        torch.manual_seed(0)
        sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
        decoder = {
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 128,
        }
        image = {"image_size": 32, "patch_size": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = ViTMAEConfig(**sizes, **decoder, **image, **more)
        model = ViTMAEForPreTraining(config)
        positions = model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed
        for done in (*positions, model.vit.embeddings.patch_embeddings.projection):
            done._is_hf_initialized = False  # otherwise transformers 5 leaves positions at zero
        model.vit.embeddings.initialize_weights()
        model.decoder.initialize_weights(64)
        assert all(fixed.any() for fixed in positions)
        with torch.no_grad():  # zero biases and unit norms would hide a swap
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    return build
