"""The model and the recipe in words."""

import shutil
from pathlib import Path

import fake_study
import pytest
from fake_study import read, read_again, set_everywhere, verdict_of

from mae_core.report import tables
from mae_core.report.text import findings, front, method
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_the_report_names_the_parts_of_its_recipe():
    plain = method.finetuning(read())
    assert "a linear head reads its class token. All weights are trained. *From scratch* is the same recipe" in plain
    assert "the recipe has" not in plain.lower()
    assert "the class token" in findings.attention_caption(read())
    assert [row[0] for row in tables.recipe_rows(read())][-1] == "weight_decay"
    set_everywhere("finetune", layer_decay=0.75)
    assert "The recipe has layer-wise decay of the learning rate (0.75; [Clark" in method.finetuning(read_again())
    parts = {"drop_path": 0.1, "label_smoothing": 0.2, "mixup": 0.8, "cutmix": 1.0, "ema_decay": 0.999, "pooling": "mean"}
    set_everywhere("finetune", **parts)
    told = method.finetuning(read_again())
    words = ("mean of its patch tokens", "decay of the learning rate (0.75;", "drop path (up to 0.1;", "smoothing (0.2;")
    assert all(
        word in told
        for word in (*words, "mixup (alpha 0.8;", "cutmix (alpha 1.0;", ")) and an exponential", "(decay 0.999).")
    )
    assert "the patch tokens" in findings.attention_caption(read_again())
    assert "shows what the patch tokens of the fine-tuned encoder attend to." in findings.attention(read_again())
    rows = {row[0]: row[1:] for row in tables.recipe_rows(read_again())}
    assert {name: rows[name] for name in parts} == {name: ["–", str(value)] for name, value in parts.items()}


def test_a_study_that_only_fine_tunes_has_a_model_a_recipe_and_a_gain():
    fake_study.write(seeds=(0, 1), cases={"theirs": None, "scratch": None}, accuracy={"theirs": 90, "scratch": 70})
    for path in Path("outputs/fake/theirs").glob("seed*/finetune/parameters.json"):
        write_json(path, read_json(path) | {"weights": "some/vit_small", "train_images": 500})
    summary = read_again()
    assert summary.default.name == "theirs"
    assert "The encoder has 2 pre-norm blocks of width 48 with 2 heads" in method.model(summary)
    assert "This study did not pre-train it: its weights are those of vit\\_small" in method.model(summary)
    text = front.abstract(summary)
    assert "no case of this study has been pre-trained; fine-tuning of the case *theirs* reaches 9" in text
    assert "% test accuracy, against 7" in text
    assert "It uses the labels of 500 training images." in method.finetuning(summary)
    assert {row[0]: row[1:] for row in tables.recipe_rows(summary)}["train_images"] == ["–", "500"]
    assert verdict_of(summary)["Pre-training beats training from scratch"] == "supported"
    assert "pre-training" not in findings.curves(summary)
    assert findings.curves_alt(summary)[0] == "No pre-training ran here."
    assert "None" not in method.model(summary)
    assert findings.curves_caption(summary).startswith("Left: no pre-training ran here. Middle and right: ")
    for path in Path("outputs/fake").glob("*/seed*/finetune/*.json"):
        own = {"dataset": "folder", "data_dir": "photos"} if path.stem == "parameters" else {"n_train": 90, "n_test": 30}
        write_json(path, read_json(path) | own) if path.stem in ("parameters", "metrics") else None
    summary = read_again()
    assert front.abstract(summary).startswith("We fine-tune an encoder that was pre-trained elsewhere")
    assert method.model(summary).startswith("**Data.** 90 training and 30 test images of 32×32 pixels; 10 classes: ")
    assert "It uses the labels of 90 training images." in method.finetuning(summary)  # 500 are not there
    assert method.masks(summary) == ""
    for path in Path("outputs/fake/theirs").glob("seed*/finetune/parameters.json"):
        told = read_json(path)
        write_json(path, told | {"weights": f"outputs/fake/theirs/seed{told['seed']}/pretrain/weights.safetensors"})
    summary = read_again()
    assert "The results of its pre-training are not there." in method.model(summary)
    assert "elsewhere" not in front.abstract(summary) + findings.curves_caption(summary)
    shutil.rmtree("outputs/fake/theirs")
    rows = {row[0]: row[1:] for row in tables.recipe_rows(read_again())}
    assert (rows["width"], "train_images" in rows) == (["–", "48"], False)


def test_the_report_says_what_became_of_positions_at_another_resolution():
    summary = read()
    assert "positions were" not in method.model(summary)
    path = Path("outputs/fake/random-75/seed0/finetune/metrics.json")
    write_json(path, read_json(path) | {"positions": "resized (bicubic) from 8 × 8 to 16 × 16"})
    assert "Before fine-tuning, positions were resized (bicubic) from 8 × 8 to 16 × 16." in method.model(summary)


def test_the_model_of_a_default_case_with_mask_tokens_or_normalized_pixels_is_told():
    fake_study.write()
    for told in ("The encoder sees the visible patches only", "and predicts pixels."):
        assert told in method.model(read_again())
    for name in set(fake_study.CASES | fake_study.SWEEP) - {"mask-tokens"}:
        shutil.rmtree(f"outputs/fake/{name}")
    set_everywhere("pretrain", norm_pix=True)
    text = method.model(read_again())
    assert "The encoder sees all patches, with a mask token in place of each masked one" in text
    assert "and predicts normalized pixels: those of each patch with mean 0 and variance 1." in text
    summary = read_again()
    for told in (findings.reconstruction_caption(summary.default), findings.features_caption(summary)):
        assert "the mean and the deviation of" in told
    set_everywhere("pretrain", norm_pix=False)
    summary = read_again()
    for told in (findings.reconstruction_caption(summary.default), findings.features_caption(summary)):
        assert "deviation" not in told
