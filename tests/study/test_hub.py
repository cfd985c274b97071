"""Exported models give our outputs in timm and transformers, to 1e-5 in float32."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from mae_core import cli
from mae_core.data.decode import decode
from mae_core.data.images import scale_pixels
from mae_core.errors import OutputError, ParameterError
from mae_core.explore.trained import keep
from mae_core.model.mae import Classifier, MaskedAutoencoder, masked_error
from mae_core.model.masking import mask_from_priority
from mae_core.study import hub
from mae_core.study.checkout import ROOT
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import KEPT, read_json, write_json
from mae_core.study.tensors import load_tensors, save_tensors, tensors_sha256
from mae_core.training.runs import finetune

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

VARIANTS = pytest.mark.parametrize("variant", ["report", "paper", "vit"])
SIZES = [{}, {"patch_size": 8, "width": 64, "heads": 1, "depth": 1}, {"patch_size": 2, "width": 24, "heads": 3, "depth": 3}]
DECODER = {"decoder_width": 32, "decoder_heads": 4, "decoder_depth": 2}
SAME = {"rtol": 1e-5, "atol": 1e-5}


def run_of(kind, variant, **more):
    values = {"variant": variant, "study": "mine", "case": "a", **more}
    if variant == "report":
        values["decoder_width"] = values.get("width", 48)
    return kind.check(values)


def random_model(run, n_classes=7):
    """A model of these parameters whose every value is random: zero biases and unit norms would hide a swap."""
    torch.manual_seed(0)
    pretrained = isinstance(run, PretrainParameters)
    model = MaskedAutoencoder(run.model) if pretrained else Classifier(run.model, n_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def saved(run, folder):
    """A random model, and the path of its weights as a run leaves them."""
    model = random_model(run)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "weights.safetensors", model.state_dict(), run.flat())
    return model, folder / "weights.safetensors"


def images(side=32):
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def opened(kind, folder, **more):
    """A model of transformers from a folder, all of whose weights come from there."""
    model, told = kind.from_pretrained(folder, output_loading_info=True, **more)
    assert not any(told.values()), told
    return model.eval()


@VARIANTS
@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_a_classifier_gives_our_scores_and_features_everywhere(tmp_path, variant, sizes):
    run = run_of(FinetuneParameters, variant, **sizes)
    ours, path = saved(run, tmp_path / "run")
    hub.export(path, tmp_path / "out")
    batch = images(run.image_size)
    scores, tokens = ours(batch), ours.encoder(batch)

    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(batch), scores, **SAME)
    torch.testing.assert_close(theirs.forward_features(batch), tokens, **SAME)

    theirs = opened(transformers.AutoModelForImageClassification, tmp_path / "out")
    assert isinstance(theirs, transformers.ViTForImageClassification)
    torch.testing.assert_close(theirs(batch).logits, scores, **SAME)
    theirs = transformers.ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    torch.testing.assert_close(theirs(batch).last_hidden_state, tokens, **SAME)


@pytest.mark.parametrize("variant", ["paper", "vit"])
@pytest.mark.parametrize("more", [{}, {"norm_pix": True, "mask_ratio": 0.9, "width": 64, "heads": 4, **DECODER}])
def test_an_autoencoder_gives_our_pixels_and_loss_in_transformers(tmp_path, variant, more):
    run = run_of(PretrainParameters, variant, **more)
    ours, path = saved(run, tmp_path / "run")
    hub.export(path, tmp_path / "out")
    theirs = opened(transformers.ViTMAEForPreTraining, tmp_path / "out")
    noise = torch.rand(3, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        told = theirs(images(), noise=noise)
        mask = mask_from_priority(noise, int((1 - told.mask[0]).sum()))
        pred = ours(images(), mask)
        loss = masked_error(pred, images(), mask, run.patch_size, run.norm_pix)
    assert mask.n_kept == hub.count_kept(64, run.mask_ratio)
    torch.testing.assert_close(told.logits, pred, **SAME)
    torch.testing.assert_close(told.loss, loss, **SAME)
    assert isinstance(transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out"), type(theirs))
    theirs = transformers.ViTMAEModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        told, tokens = theirs(images(), noise=noise).last_hidden_state, ours.encoder(images(), mask)
    torch.testing.assert_close(told, tokens, **SAME)


@pytest.mark.parametrize(("variant", "tokens"), [("report", False), ("paper", False), ("paper", True)])
@torch.no_grad()
def test_an_encoder_gives_our_features_everywhere(tmp_path, variant, tokens, capsys):
    run = run_of(PretrainParameters, variant, mask_tokens_in_encoder=tokens)
    ours, path = saved(run, tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(path), str(tmp_path / "out")])
    assert ended.value.code == 0
    alone = "the folder holds the encoder alone" in capsys.readouterr().out
    assert alone == (variant == "report" or tokens)
    expected = ours.encoder(images())
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(theirs.forward_features(images()), expected, **SAME)
    assert theirs.num_classes == 0
    if alone:
        theirs = opened(transformers.ViTModel, tmp_path / "out", add_pooling_layer=False)
        torch.testing.assert_close(theirs(images()).last_hidden_state, expected, **SAME)


@pytest.mark.parametrize("n_patches", [16, 64, 81, 100, 225, 256, 400])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9])
def test_transformers_keeps_as_many_patches_as_we(n_patches, ratio):
    assert int(n_patches * (1 - hub.their_mask_ratio(n_patches, ratio))) == hub.count_kept(n_patches, ratio)


@torch.no_grad()
def test_what_timm_cannot_express_is_left_to_transformers(tmp_path):
    ours, path = saved(run_of(FinetuneParameters, "vit", norm_eps=0.1), tmp_path / "run")
    model = hub.export(path, tmp_path / "out")
    assert "only transformers opens the folder" in model.lacking[0]
    assert {file.name for file in (tmp_path / "out").iterdir()} == hub.FILES - {hub.WEIGHTS_OF_TRANSFORMERS}
    theirs = opened(transformers.ViTForImageClassification, tmp_path / "out")
    torch.testing.assert_close(theirs(images()).logits, ours(images()), **SAME)
    with pytest.raises(KeyError):
        timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)


@VARIANTS
@torch.no_grad()
def test_a_classifier_on_the_mean_of_patches_is_timms_alone(tmp_path, variant):
    ours, path = saved(run_of(FinetuneParameters, variant, pooling="mean"), tmp_path / "run")
    model = hub.export(path, tmp_path / "out")
    assert model.lacking == ["ViTForImageClassification reads the class token, not the mean: only timm opens the folder."]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(images()), ours(images()), **SAME)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"config.json", "README.md", hub.WEIGHTS}
    assert "transformers" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    hub.export(path, tmp_path / "out")  # it is known as an earlier export
    _, path = saved(run_of(FinetuneParameters, variant, pooling="mean", norm_eps=0.1), tmp_path / "neither")
    with pytest.raises(ParameterError, match=r"cannot be exported: ViTForImageClassification reads .* timm's LayerNorm"):
        hub.export(path, tmp_path / "neither-out")


@pytest.mark.parametrize("size", [(32, 32), (90, 60), (24, 50)])
def test_both_libraries_prepare_pictures_as_we_do(tmp_path, size):
    _, path = saved(run_of(FinetuneParameters, "report"), tmp_path / "run")
    hub.export(path, tmp_path / "out")
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy()).resize((8, 8)).resize(size, Image.Resampling.BICUBIC)
    picture.save(tmp_path / "a.png")
    expected = scale_pixels(torch.from_numpy(decode(tmp_path / "a.png", 32).copy()).permute(2, 0, 1))

    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    theirs = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for prepared in (theirs, transform(picture)):
        exact = size == (32, 32)
        torch.testing.assert_close(prepared, expected, rtol=0, atol=1e-5 if exact else 0.25)
        assert (prepared - expected).abs().mean() < (1e-5 if exact else 0.03)


CLASSES = [f"kind {i}" for i in range(7)]


@pytest.fixture
def finished(tmp_path):
    """The folder of a fine-tuned run with its results, beside its pre-training and another seed."""
    folder = tmp_path / "outputs" / "mine" / "a" / "seed3" / "finetune"
    path = "outputs/mine/a/seed3/pretrain/weights.safetensors"
    run = run_of(FinetuneParameters, "report", seed=3, dataset="cifar10", weights=path, epochs=11, train_images=1234)
    saved(run, folder)
    write_json(folder / "metrics.json", {"last_epoch_accuracy": 71.25, "predictions": {"classes": CLASSES}})
    sha256 = tensors_sha256(folder / "weights.safetensors")
    write_json(folder / "provenance.json", {"commit": "c0ffee", "data_md5": "5eed", "weights_sha256": sha256})
    before = run_of(PretrainParameters, "report", seed=3, epochs=17, mask_strategy="block", mask_ratio=0.5)
    write_json(folder.parent / "pretrain" / "parameters.json", before.flat())
    add_seed(folder, 4, 70.5)
    return folder


def add_seed(folder, seed, accuracy, pretrain_epochs=17, **more):
    """Another seed of a run, with its pre-training; ``more`` are parameters in which it differs."""
    _, about = load_tensors(folder / "weights.safetensors")
    about |= {"seed": seed, "weights": about["weights"].replace("seed3", f"seed{seed}")}
    other, before = folder.parents[1] / f"seed{seed}", read_json(folder.parent / "pretrain" / "parameters.json")
    write_json(other / "finetune" / "metrics.json", {"last_epoch_accuracy": accuracy})
    write_json(other / "finetune" / "parameters.json", about | more)
    write_json(other / "pretrain" / "parameters.json", before | {"seed": seed, "epochs": pretrain_epochs})


def test_the_card_tells_what_the_run_measured(finished, tmp_path):
    hub.export(finished, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["license"], told["library_name"], told["datasets"]) == ("mit", "timm", ["uoft-cs/cifar10"])
    assert {"timm", "transformers", "masked-autoencoder"} <= set(told["tags"])
    (result,) = told["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 71.25
    rows = dict(re.findall(r"^\| (\S.*?) \| (.*) \|$", body, re.MULTILINE))
    n_parameters = sum(tensor.numel() for tensor in load_tensors(finished / "weights.safetensors")[0].values())
    assert rows["parameters"] == f"{n_parameters:,}"
    assert rows["test accuracy, last epoch (%)"] == "71.25"
    assert rows["the same with other seeds (4)"] == "70.50"
    assert (rows["seed"], rows["commit"], rows["MD5 of the data"]) == ("3", "c0ffee", "5eed")
    assert rows["data"] == "cifar10, the first 1,234 images"
    assert (
        "pre-trained as a masked autoencoder for 17 epochs with block masks of 50 %, then fine-tuned for 11 epochs" in body
    )
    assert "bfloat16" not in text


def test_other_seeds_have_the_same_parameters(finished, tmp_path):
    about = load_tensors(finished / "weights.safetensors")[1]
    add_seed(finished, 5, 50.0, epochs=12)
    add_seed(finished, 6, 60.0, pretrain_epochs=18)
    add_seed(finished, 7, 70.0, threads=2, data_dir="elsewhere")  # how it was computed, and where the data were
    add_seed(finished, 8, 80.0, weights=about["weights"])
    add_seed(finished, 9, 90.0, weights="elsewhere/seed9/pretrain/weights.safetensors")
    add_seed(finished, 10, 40.0)
    (finished.parents[1] / "seed10" / "finetune" / "parameters.json").unlink()
    hub.export(finished, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| the same with other seeds (4, 7, 8) | 70.50, 70.00, 80.00 |" in text


def test_the_card_calls_no_validation_accuracy_a_test(tmp_path):
    folder = tmp_path / "outputs" / "mine" / "a" / "seed0" / "finetune"
    saved(run_of(FinetuneParameters, "report", dataset="cifar10", holdout=5000), folder)
    write_json(folder / "metrics.json", {"last_epoch_accuracy": 71.25, "test_loss": 1.5, "probes": {"knn": 40.0}})
    hub.export(folder, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (result,) = yaml.safe_load(text.split("---\n", 2)[1])["model-index"][0]["results"]
    assert result["dataset"]["split"] == "validation"
    name = "validation accuracy, last epoch (%), on 5,000 held-out training images"
    assert result["metrics"] == [{"type": "accuracy", "name": name, "value": 71.25}]
    assert f"| {name} | 71.25 |" in text
    assert "| validation loss, on 5,000 held-out training images | 1.5000 |" in text
    assert "| k-NN, frozen encoder (%), on 5,000 held-out training images | 40.00 |" in text
    assert "test" not in text


def test_the_card_of_a_model_of_own_pictures_names_their_folder_and_grants_nothing(tmp_path):
    folder = tmp_path / "outputs" / "mine" / "a" / "seed0" / "finetune"
    saved(run_of(FinetuneParameters, "report", dataset="folder", data_dir="somewhere/my birds"), folder)
    write_json(folder / "metrics.json", {"last_epoch_accuracy": 71.25, "predictions": {"classes": CLASSES}})
    hub.export(folder, tmp_path / "out")
    _, head, body = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    told = yaml.safe_load(head)
    assert "license" not in told
    assert "datasets" not in told
    dataset = told["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"type": "imagefolder", "name": "my birds", "split": "test"}
    assert "| data | my birds |" in body
    assert "somewhere" not in body


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("", ""),
        ("outputs/mine/a/seed0/pretrain", ""),
        ("/elsewhere/outputs/another/b/seed3/pretrain/weights.safetensors", ""),
        ("somewhere/vit_base.mae", "vit_base.mae"),
        ("somewhere/vit_base.mae/model.safetensors", "vit_base.mae/model.safetensors"),
    ],
)
def test_the_card_grants_no_licence_for_the_weights_of_others(tmp_path, weights, told):
    saved(run_of(FinetuneParameters, "report", dataset="cifar10", weights=weights), tmp_path / "run")
    hub.export(tmp_path / "run", tmp_path / "out")
    _, head, body = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert ("license" in yaml.safe_load(head)) == (not told)
    assert (f"It started from the weights `{told}`, whose licence applies." in body) == bool(told)
    assert "somewhere" not in body


def test_both_libraries_know_the_classes(finished, tmp_path):
    hub.export(finished, tmp_path / "out")
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    assert theirs.config.label2id == {name: i for i, name in enumerate(CLASSES)}
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert theirs.pretrained_cfg["label_names"] == CLASSES
    assert len(theirs.head.bias) == len(CLASSES)


def test_kept_weights_are_told_as_such(finished, tmp_path):
    kept = keep(finished)
    (finished / "weights.safetensors").unlink()
    hub.export(finished, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Its weights were kept in bfloat16; the figures below are those of the run before that." in text
    assert "| test accuracy, last epoch (%) | 71.25 |" in text
    assert "| commit | c0ffee |" in text
    assert yaml.safe_load(text.split("---\n", 2)[1])["model-index"]
    assert "repetition" not in text
    theirs = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in theirs.values()} == {torch.float32}
    assert theirs["head.bias"].equal(load_tensors(kept)[0]["head.bias"].float())


def test_the_kept_weights_of_a_fresh_run_have_its_results(tiny, tmp_path):
    run = FinetuneParameters.check({**tiny, "weights": "", "probes": False})
    finetune(run)
    folder = run.folder / "finetune"
    keep(folder)
    (folder / "weights.safetensors").unlink()
    assert not hub.export(folder, tmp_path / "out").repeats
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    accuracy = read_json(folder / "metrics.json")["last_epoch_accuracy"]
    assert f"| test accuracy, last epoch (%) | {accuracy:.2f} |" in text
    (result,) = yaml.safe_load(text.split("---\n", 2)[1])["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == accuracy


@pytest.mark.parametrize("note", ["another", "none"])
def test_kept_weights_of_a_repetition_have_none_of_the_runs_results(finished, tmp_path, note):
    path = keep(finished)
    if note == "another":  # the run was repeated, with other weights
        write_json(finished / "provenance.json", {"commit": "c0ffee", "weights_sha256": "0123"})
    else:  # kept by an earlier version
        save_tensors(path, *load_tensors(path))
    (finished / "weights.safetensors").unlink()
    model = hub.export(finished, tmp_path / "out")
    assert_tells_no_results((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    assert model.classes == CLASSES
    _, about = load_tensors(path)
    write_json(finished / "parameters.json", about)
    hub.export(finished, tmp_path / "out")
    write_json(finished / "parameters.json", about | {"epochs": 12})
    with pytest.raises(ParameterError, match=r"is not what parameters.json beside it describes: move it to a folder"):
        hub.export(finished, tmp_path / "out")


def assert_tells_no_results(text):
    """The card is that of a repetition: neither measurements nor what only the run itself has."""
    _, head, body = text.split("---\n", 2)
    assert not {"metrics", "model-index"} & yaml.safe_load(head).keys()
    assert "Its weights are those of a repetition of this run: with the same parameters" in body
    assert "Its weights were kept in bfloat16." in body
    rows = re.findall(r"^\| (\S.*?) \| .* \|$", body, re.MULTILINE)
    assert rows == ["data", "model", "parameters", "seed"]


def test_the_published_kept_weights_claim_no_results_of_the_published_run(tmp_path):
    """They are of repetitions (LOG.md): the classifier's accuracy is not that of the metrics beside it."""
    found = sorted((ROOT / "outputs" / "laptop").glob(f"*/seed0/*/{KEPT}"))
    assert len(found) == 4
    for path in found:
        model = hub.export(path.parent, tmp_path / "out")
        assert_tells_no_results((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
        assert ("airplane" in model.classes) == (path.parent.name == "finetune")


def test_a_model_of_transformers_trains_on_and_is_saved_as_its_own(finished, tmp_path):
    """The folder that transformers then writes has one file of weights, and no word of ours leads it astray."""
    hub.export(finished, tmp_path / "out")
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out")
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path / "again")
    again = opened(transformers.ViTForImageClassification, tmp_path / "again")
    assert again.classifier.weight.equal(model.classifier.weight)


def test_what_transformers_trained_and_saved_is_no_earlier_export(finished, tmp_path):
    hub.export(finished, tmp_path / "out")
    transformers.ViTForImageClassification.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    before = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert "mae_core" in before["config.json"].decode()
    with pytest.raises(ParameterError, match="holds something else than an earlier export"):
        hub.export(finished, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before


def test_exporting_imports_neither_library(finished, tmp_path):
    script = (
        "import sys; from pathlib import Path; from mae_core.study.hub import export; "
        f"export(Path({str(finished)!r}), Path({str(tmp_path / 'out')!r})); "
        "assert not {'timm', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_an_earlier_export_is_replaced_as_a_whole(finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    hub.export(finished, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    hub.export(finished, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    saved(run_of(FinetuneParameters, "vit", norm_eps=0.1), tmp_path / "other")
    hub.export(tmp_path / "other", out)
    assert {path.name for path in out.iterdir()} == hub.FILES - {hub.WEIGHTS_OF_TRANSFORMERS}
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_link_to_itself_is_told(finished, tmp_path):
    (tmp_path / "my-model").symlink_to(tmp_path / "my-model")
    with pytest.raises(OutputError, match="my-model cannot be written"):
        hub.export(finished, tmp_path / "my-model")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_folder_stays_and_the_export_is_where_it_leads(finished, tmp_path, there):
    place, link = tmp_path / "disk" / "scratch", tmp_path / "my-model"
    place.parent.mkdir()
    if there:
        hub.export(finished, place)
    link.symlink_to(place)
    hub.export(finished, link)
    assert link.is_symlink()
    assert {path.name for path in place.iterdir()} == hub.FILES
    assert "my-model" in (place / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("failing", ["write_tensors", "write_json", "card"])
def test_a_failed_export_leaves_what_was_there(finished, tmp_path, monkeypatch, failing):
    out = tmp_path / "out"
    hub.export(finished, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*words, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, failing, full)
    with pytest.raises(OutputError, match=r"cannot be written .No space left on device.: free some space"):
        hub.export(finished, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "outputs"}
    with pytest.raises(OutputError):
        hub.export(finished, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_earlier_export_returns_if_the_new_one_cannot_take_its_place(finished, tmp_path, monkeypatch, error):
    out = tmp_path / "out"
    hub.export(finished, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rename = type(out).rename

    def failing(path, target):
        if path.name == "new":
            raise error
        return rename(path, target)

    monkeypatch.setattr(type(out), "rename", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        hub.export(finished, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("folder", [".", ".."])
def test_a_folder_without_a_name_is_refused(finished, tmp_path, monkeypatch, folder):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(ParameterError, match=r"cannot be replaced: name a new folder, such as my-model"):
        hub.export(finished, Path(folder))


@pytest.mark.parametrize("name", ["finetune/metrics.json", "finetune/provenance.json", "pretrain/parameters.json"])
def test_damaged_results_are_named(finished, tmp_path, name):
    path = finished.parent / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ParameterError, match=rf"{name} is damaged: "):
        hub.export(finished, tmp_path / "out")


def test_damaged_results_of_another_seed_are_left_out(finished, tmp_path):
    add_seed(finished, 5, 50.0)
    (finished.parents[1] / "seed5" / "finetune" / "metrics.json").write_text("{", encoding="utf-8")
    hub.export(finished, tmp_path / "out")
    assert "| the same with other seeds (4) | 70.50 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", [{"notes.txt": "mine"}, {"config.json": "{}"}, {"config.json": '{"model_type": "vit"}'}]
)
def test_a_folder_of_something_else_is_refused(finished, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in content.items():
        (out / name).write_text(text, encoding="utf-8")
    with pytest.raises(ParameterError, match="holds something else than an earlier export: name a new folder"):
        hub.export(finished, out)
    assert {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()} == content


def test_a_folder_of_ours_with_more_in_it_is_refused(finished, tmp_path):
    hub.export(finished, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ParameterError, match="something else"):
        hub.export(finished, tmp_path / "out")
    with pytest.raises(ParameterError, match="is a file: name a new folder"):
        hub.export(finished, tmp_path / "out" / "notes.txt")


def test_what_is_no_finished_run_is_refused(finished, tmp_path):
    with pytest.raises(ParameterError, match=r"has no weights.safetensors"):
        hub.export(tmp_path, tmp_path / "out")
    with pytest.raises(ParameterError, match=r"cannot be exported .* is damaged"):
        hub.export(finished / "metrics.json", tmp_path / "out")
    checkpoint = tmp_path / "checkpoint.safetensors"
    save_tensors(checkpoint, {"model.head.weight": torch.zeros(1)}, FinetuneParameters().flat())
    with pytest.raises(ParameterError, match="holds no model of a finished run"):
        hub.export(checkpoint, tmp_path / "out")
    saved(FinetuneParameters(width=24, heads=1, decoder_width=24), finished)  # another run's weights beside the results
    with pytest.raises(ParameterError, match=r"is not what provenance.json beside it describes"):
        hub.export(finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_no_library_can_express_is_refused_without_naming_one(tmp_path):
    _, path = saved(run_of(FinetuneParameters, "vit", norm_eps=0.1, pooling="mean"), tmp_path / "run")
    with pytest.raises(ParameterError, match="cannot be exported") as refused:
        hub.export(path, tmp_path / "out")
    assert "only" not in str(refused.value)
    assert "reads the class token, not the mean. timm's LayerNorm has the epsilon" in str(refused.value)


@pytest.mark.parametrize("content", ["{", "[]", '"mae_core"'])
def test_a_damaged_config_is_no_earlier_export(tmp_path, content):
    _, path = saved(run_of(FinetuneParameters, "vit"), tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ParameterError, match="holds something else than an earlier export"):
        hub.export(path, tmp_path / "out")


def test_a_copy_that_cannot_be_written_is_told(tmp_path):
    saved(run_of(FinetuneParameters, "vit"), tmp_path)
    (tmp_path / "weights.bfloat16.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"weights.bfloat16.safetensors cannot be written"):
        keep(tmp_path)


def test_a_run_that_is_repeated_is_not_exported_halfway(finished, tmp_path):
    (finished / "metrics.json").unlink()
    with pytest.raises(ParameterError, match=r"has no metrics\.json beside it, so its run has not finished"):
        hub.export(finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [".", "finetune"])
def test_the_card_does_not_depend_on_the_working_folder(finished, tmp_path, monkeypatch, given):
    hub.export(finished, tmp_path / "whole" / "out")
    monkeypatch.chdir(finished if given == "." else finished.parent)
    hub.export(Path(given), tmp_path / "here" / "out")
    cards = [(tmp_path / name / "out" / "README.md").read_text(encoding="utf-8") for name in ("whole", "here")]
    assert "with block masks of 50 %" in cards[0]
    assert cards[0] == cards[1]


def test_a_folder_whose_name_is_no_text_is_told(finished, tmp_path):
    with pytest.raises(ParameterError, match=r"'caf\\udce9' has bytes that are not UTF-8"):
        hub.export(finished, tmp_path / "caf\udce9")
