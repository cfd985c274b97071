import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mae_core.data.images import checksum, load
from mae_core.errors import BusyError, ParameterError
from mae_core.evaluation.probes import features, knn, linear_probe
from mae_core.explore.trained import open_run
from mae_core.model.mae import Classifier, MaskedAutoencoder
from mae_core.model.vit import resize_positions, sincos_positions
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import load_predictions, load_sheet, metric_rows, read_json, write_json
from mae_core.study.tensors import load_tensors, save_tensors
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


def test_the_provenance_tells_from_which_weights_fine_tuning_started(tiny):
    found = [PretrainParameters.check({**tiny, "epochs": 1}), FinetuneParameters.check({**tiny, "epochs": 1})]
    pretrain(found[0])
    finetune(found[1])  # from the weights of its case
    before, after = (
        read_json(run.folder / stage / "provenance.json")
        for run, stage in zip(found, ("pretrain", "finetune"), strict=True)
    )
    assert after["initial_weights_sha256"] == before["weights_sha256"]
    assert "initial_weights_sha256" not in before


def test_the_probes_are_those_of_the_pre_trained_encoder_whatever_the_head_reads(tiny, monkeypatch):
    """The norm that follows the mean of patches starts anew, as the MAE paper's fc_norm, but only after the probes."""
    pretrained, started, fit = pretrain(PretrainParameters.check(tiny)), [], runs.fit
    train, test = (load("shapes", tiny["data_dir"], first, limit) for first, limit in ((True, 512), (False, 0)))

    def follow(model, *words, **more):
        started.append(model.encoder.norm.weight.detach().clone())
        return fit(model, *words, **more)

    def probed(encoder):
        train_nD, test_nD = features(encoder, train, test, run, torch.device("cpu"))
        both = {"linear": linear_probe, "knn": knn}
        return {name: measure(train_nD, train.labels_n, test_nD, test.labels_n) for name, measure in both.items()}

    monkeypatch.setattr(runs, "fit", follow)
    for pooling in ("class-token", "mean"):
        run = FinetuneParameters.check({**tiny, "pooling": pooling, "base_lr": 0.1}).resolved()
        assert run.weights
        tuned = finetune(run)
        found = read_json(run.folder / "finetune" / "metrics.json")["probes"]
        assert found == probed(pretrained.encoder)
        assert found != probed(tuned.encoder)
        assert started.pop().equal(torch.ones(24)) == (pooling == "mean")
    run = FinetuneParameters.check({**tiny, "case": "again", "pooling": "mean", "weights": str(run.folder / "finetune")})
    finetune(run)  # whose last norm followed a mean before
    assert started.pop().equal(tuned.encoder.norm.weight)


def test_kept_weights_are_those_of_the_case_where_the_others_are_missing(tiny):
    run = FinetuneParameters.check(tiny)
    assert run.resolved().weights == ""
    for name in ("weights.bfloat16.safetensors", "weights.safetensors"):
        (run.folder / "pretrain").mkdir(parents=True, exist_ok=True)
        (run.folder / "pretrain" / name).touch()
        assert run.resolved().weights == str(run.folder / "pretrain" / name)


def test_a_run_on_validation_images_never_sees_the_test_images(tiny, monkeypatch):
    loaded = []
    monkeypatch.setattr(runs, "load", lambda *words, **more: loaded.append(load(*words, **more)) or loaded[-1])
    for stage, run in (("pretrain", PretrainParameters), ("finetune", FinetuneParameters)):
        run = run.check({**tiny, "holdout": 300})
        {"pretrain": pretrain, "finetune": finetune}[stage](run)
    whole, test = (load("shapes", tiny["data_dir"], train=train) for train in (True, False))
    known, unseen = ({hash(image.numpy().tobytes()) for image in split.images_nCHW} for split in (whole, test))
    seen = [{hash(image.numpy().tobytes()) for image in split.images_nCHW} for split in loaded]
    assert [len(images) for images in seen] == [512, 300] * 2
    assert all(images <= known and not images & unseen for images in seen)
    assert not seen[0] & seen[1]
    with pytest.raises(ParameterError, match="holdout is 2000: it must leave some of the 2000 training images to train on"):
        finetune(FinetuneParameters.check({**tiny, "holdout": 2000}))


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


def test_both_stages_take_images_of_another_size(tiny, draws_few):
    values = {**tiny, "data_dir": "data", "image_size": 48, "patch_size": 8, "epochs": 1, "train_images": 128}
    model = pretrain(PretrainParameters.check({**values, "mask_strategy": "grid"}))
    assert model.decoder_positions.shape[0] == 1 + 36
    run = FinetuneParameters.check(values)
    finetune(run)
    for stage, rows in (("pretrain", 3), ("finetune", 1)):
        assert load_sheet(run.folder / stage / "pictures.png", rows).shape == (rows, 10, 48, 48, 3)


def test_fine_tuning_starts_from_a_model_of_timm(tiny, tmp_path, capsys):
    timm = pytest.importorskip("timm")
    sizes = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, **sizes).eval()
    timm.models.save_for_hf(theirs, tmp_path / "theirs", safe_serialization=True)
    run = FinetuneParameters.check({**tiny, "variant": "vit", "weights": str(tmp_path / "theirs")})
    model = new_model(Classifier, run, torch.device("cpu"))
    assert runs.load_encoder(model, run).told(run.model) == {}
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images), theirs.forward_features(images), rtol=1e-5, atol=1e-5)
    finetune(run)
    metrics = read_json(run.folder / "finetune" / "metrics.json")
    assert metrics["last_epoch_accuracy"] > 0
    assert "positions" not in metrics
    with pytest.raises(ParameterError, match=r"variant is 'report', but .* set variant: vit"):
        finetune(run.model_copy(update={"variant": "report"}))


def test_a_scale_of_images_that_is_assumed_is_kept_with_the_results(tiny, tmp_path, capsys):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=24, depth=1, num_heads=2)
    timm.models.save_for_hf(theirs, tmp_path / "theirs", safe_serialization=True)
    (tmp_path / "theirs" / "config.json").unlink()
    run = FinetuneParameters.check({**tiny, "variant": "vit", "weights": str(tmp_path / "theirs")})
    told = runs.load_encoder(new_model(Classifier, run, torch.device("cpu")), run).told(run.model)
    sentence = "no config.json with mean and std beside the weights, so images are scaled to [-1, 1]"
    assert f"{run.weights}: {sentence}\n" in capsys.readouterr().out
    assert metric_rows(told) == [["scale of images", sentence]]


@pytest.mark.parametrize(("variant", "told"), [("vit", "resized (bicubic)"), ("paper", "computed anew")])
def test_weights_of_another_grid_get_positions_for_the_runs(tiny, tmp_path, capsys, variant, told):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=4, embed_dim=24, depth=1, num_heads=2)
    theirs.pos_embed.data = sincos_positions(16, 24)[None].clone()
    timm.models.save_for_hf(theirs, tmp_path / "theirs", safe_serialization=True)
    run = FinetuneParameters.check({**tiny, "variant": variant, "weights": str(tmp_path / "theirs"), "epochs": 1})
    model = new_model(Classifier, run, torch.device("cpu"))
    sentence = f"{told} from 16 × 16 to 8 × 8"
    assert runs.load_encoder(model, run).told(run.model) == {"positions": sentence}
    assert f"positions {sentence}" in capsys.readouterr().out
    fixed, resized = sincos_positions(8, 24)[1:], resize_positions(sincos_positions(16, 24)[1:], 8)
    assert model.encoder.positions.equal(fixed if variant == "paper" else resized)
    finetune(run)
    metrics = read_json(run.folder / "finetune" / "metrics.json")
    assert ["positions of patches", sentence] in metric_rows(metrics)


@pytest.mark.parametrize(("variant", "told"), [("report", "resized (bicubic)"), ("paper", "computed anew")])
def test_fine_tuning_at_another_resolution_starts_from_the_pre_trained_weights(tiny, variant, told):
    before = PretrainParameters.check({**tiny, "variant": variant})
    run = FinetuneParameters.check({**tiny, "variant": variant, "image_size": 48})
    pretrained, tuned = (
        new_model(kind, r, torch.device("cpu")) for kind, r in ((MaskedAutoencoder, before), (Classifier, run))
    )
    for stage, model, about in (("pretrain", pretrained, before), ("finetune", tuned, run)):
        save_tensors(run.folder / stage / "weights.safetensors", model.state_dict(), about.flat())
        write_json(run.folder / stage / "metrics.json", {})
    run = run.resolved()
    assert runs.load_encoder(tuned, run).told(run.model) == {"positions": f"{told} from 8 × 8 to 12 × 12"}
    theirs, ours = pretrained.encoder.state_dict(), tuned.encoder.state_dict()
    if variant == "report":
        assert ours.pop("positions").equal(resize_positions(theirs.pop("positions"), 12))
    assert same(theirs, ours)
    back = FinetuneParameters.check({**tiny, "variant": variant, "weights": str(run.folder / "finetune")})
    again = new_model(Classifier, back, torch.device("cpu"))
    assert runs.load_encoder(again, back).told(back.model) == {"positions": f"{told} from 12 × 12 to 8 × 8"}
    assert open_run(run.folder, torch.device("cpu")).classifier is None  # it would be asked about images of 32 pixels


@pytest.mark.slow
def test_positions_resized_to_twice_the_grid_and_back_cost_less_than_a_point(tiny):
    more = {"augment": "crop-flip", "epochs": 5, "width": 48, "decoder_width": 48, "train_images": 2000}
    run = FinetuneParameters.check({**tiny, **more, "probes": False, "precision": "float32"})
    model = finetune(run)
    test = runs.load(run.dataset, run.data_dir, train=False)
    positions = model.encoder.positions.data

    def accuracy(changed):
        model.encoder.positions.data = changed
        scores = runs.classification.class_scores(model, test, run, torch.device("cpu"))
        return runs.classification.accuracy(scores, test.labels_n)

    trained, again = accuracy(positions), accuracy(resize_positions(resize_positions(positions, 16), 8))
    assert accuracy(torch.zeros_like(positions)) < trained - 10  # they count for much
    assert abs(again - trained) <= 1


def test_the_checksum_is_of_the_data_that_were_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (20 * i, 40, 60)).save(tmp_path / "photos" / f"{i}.png")
    before = checksum("folder", "photos", 16)

    def add_one(*_):
        Image.new("RGB", (16, 16), "white").save(tmp_path / "photos" / "later.png")

    few = {"dataset": "folder", "data_dir": "photos", "image_size": 16, "batch_size": 4, "epochs": 1, "warmup_epochs": 0.0}
    pretrain(PretrainParameters(**few, width=24, depth=1, decoder_width=24, threads=1), watch=add_one)
    told = read_json(Path("outputs/notebook/random-75/seed0/pretrain/provenance.json"))
    assert told["data_md5"] == before != checksum("folder", "photos", 16)


def test_a_handful_of_images_is_enough_for_probes_and_neighbours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "pets" / part / label).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (16, 16), (90 * i, 40, 100 * (label == "dog"))).save(
                    tmp_path / "pets" / part / label / f"{i}.png"
                )
    few = {"dataset": "folder", "data_dir": "pets", "image_size": 16, "batch_size": 1, "epochs": 1, "warmup_epochs": 0.0}
    tiny = {"width": 24, "depth": 1, "threads": 1, "weights": ""}
    for train_images in (0, 1):
        finetune(FinetuneParameters(**few, **tiny, train_images=train_images))
        told = read_json(Path("outputs/notebook/random-75/seed0/finetune/metrics.json"))
        assert 0 <= told["probes"]["linear"] <= 100
        assert {len(labels) for labels in told["neighbours"]["labels"]} == {train_images or 4}
