import subprocess
import sys

import pytest
import torch

from mae_core.errors import BusyError, ParameterError
from mae_core.model.mae import Classifier
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import load_predictions, read_json
from mae_core.study.tensors import load_tensors
from mae_core.training import runs
from mae_core.training.runs import finetune, new_model, pretrain


def weights(run, stage="pretrain"):
    return load_tensors(run.folder / stage / "weights.safetensors")[0]


def same(first, second):
    assert first.keys() == second.keys()
    return all(first[name].equal(second[name]) for name in first)


def test_the_same_seed_gives_the_same_weights(tiny):
    runs = [PretrainParameters.check({**tiny, "case": c, "seed": s}) for c, s in (("a", 0), ("b", 0), ("c", 1))]
    for run in runs:
        pretrain(run)
    first, again, other = (weights(run) for run in runs)
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("strategy", ["random", "block", "grid"])
@pytest.mark.parametrize("tokens", [False, True])
def test_every_masking_learns(tiny, strategy, tokens):
    values = {**tiny, "epochs": 8, "mask_strategy": strategy, "mask_tokens_in_encoder": tokens}
    run = PretrainParameters.check(values)
    pretrain(run)
    history, metrics = (read_json(run.folder / "pretrain" / f"{name}.json") for name in ("history", "metrics"))
    assert history["train_loss"][-1] < 0.7 * history["train_loss"][0]
    assert metrics["test_loss"] == pytest.approx(history["train_loss"][-1], rel=0.25)
    assert history["epoch"] == list(range(1, 9))


def test_fine_tuning_starts_from_the_pre_trained_encoder(tiny):
    run = PretrainParameters.check(tiny)
    trained = pretrain(run)
    path = str(run.folder / "pretrain" / "weights.safetensors")
    model = new_model(Classifier, FinetuneParameters.check(tiny), torch.device("cpu"))
    runs.load_encoder(model, FinetuneParameters.check({**tiny, "weights": path}))
    assert same(trained.encoder.state_dict(), model.encoder.state_dict())
    with pytest.raises(ParameterError, match=r"width is 32, but .* was trained with 24"):
        finetune(FinetuneParameters.check({**tiny, "width": 32, "decoder_width": 32, "weights": path}))
    with pytest.raises(ParameterError, match="there is no such file; pre-train first"):
        finetune(FinetuneParameters.check({**tiny, "weights": "nowhere.safetensors"}))


def test_fine_tuning_learns_and_tells_what_it_measured(tiny):
    run = FinetuneParameters.check(
        {**tiny, "epochs": 40, "train_images": 64, "batch_size": 32, "width": 48, "decoder_width": 48}
    )
    finetune(run)
    history, metrics = (read_json(run.folder / "finetune" / f"{name}.json") for name in ("history", "metrics"))
    assert history["train_loss"][-1] < 1.1  # it can learn 64 images by heart; guessing gives 2.3
    assert metrics["last_epoch_accuracy"] == history["test_accuracy"][-1]
    assert metrics["best_epoch_accuracy"] == max(history["test_accuracy"])
    assert sum(map(sum, metrics["predictions"]["confusion"])) == 400
    right = sum(row[i] for i, row in enumerate(metrics["predictions"]["confusion"]))
    assert metrics["last_epoch_accuracy"] == pytest.approx(right / 4)
    assert set(metrics["probes"]) == {"linear", "knn"}
    sheets = {path.stem for path in (run.folder / "finetune").glob("*.png")}
    assert sheets == {"pictures", "attention", "mistakes", "neighbours", "predictions"}
    predicted_n, true_n = load_predictions(run.folder / "finetune" / "predictions.png")
    counts = [[int(((true_n == i) & (predicted_n == j)).sum()) for j in range(10)] for i in range(10)]
    assert counts == metrics["predictions"]["confusion"]
    assert predicted_n[:10].tolist() == metrics["predictions"]["predicted"]
    mistakes = metrics["mistakes"]
    assert all(a != b for a, b in zip(mistakes["true"], mistakes["predicted"], strict=True))
    assert mistakes["confidence"] == sorted(mistakes["confidence"], reverse=True)
    assert len(mistakes["images"]) == len(metrics["neighbours"]["labels"]) == 10
    for name in ("parameters", "provenance"):
        assert read_json(run.folder / "finetune" / f"{name}.json")


def test_a_folder_takes_one_process_at_a_time(tiny):
    run = PretrainParameters.check(tiny)
    (run.folder / "pretrain").mkdir(parents=True)
    script = "import sys, time; from mae_core.study.results import claimed; from pathlib import Path\n"
    script += "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", script, run.folder / "pretrain"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(BusyError, match=f"process {other.pid} trains into"):
            pretrain(run)
        other.kill()
    pretrain(run)


def test_a_missing_device_is_refused(tiny):
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ParameterError, match=f"device is '{missing}'"):
        pretrain(PretrainParameters.check({**tiny, "device": missing}))


@pytest.mark.gpu
def test_it_trains_on_a_gpu(tiny):
    for case, device in (("cpu", "cpu"), ("gpu", "cuda")):
        pretrain(PretrainParameters.check({**tiny, "case": case, "device": device, "precision": "float32", "epochs": 8}))
    losses = [
        read_json(PretrainParameters(study="notebook", case=c).folder / "pretrain" / "metrics.json") for c in ("cpu", "gpu")
    ]
    assert losses[0]["test_loss"] == pytest.approx(losses[1]["test_loss"], rel=0.1)


def test_it_trains_on_cifar10(tiny, cifar10_dir):
    values = {**tiny, "dataset": "cifar10", "data_dir": str(cifar10_dir), "train_images": 2000, "epochs": 3}
    run = PretrainParameters.check(values)
    pretrain(run)
    history = read_json(run.folder / "pretrain" / "history.json")
    assert history["train_loss"][-1] < 0.8 * history["train_loss"][0]
    finetuning = FinetuneParameters.check(values | {"weights": str(run.folder / "pretrain" / "weights.safetensors")})
    finetune(finetuning)
    assert read_json(finetuning.folder / "finetune" / "metrics.json")["last_epoch_accuracy"] > 12
