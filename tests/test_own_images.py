"""A study of one's own images, from a copy of params/own-images.yaml to its report, and one of images without classes."""

import os
import re
import shutil
from pathlib import Path

import papermill
import pytest
import yaml
from checkout import Checkout
from photos import write, write_cifar100
from PIL import Image

from mae_core.errors import ParameterError
from mae_core.report.export import write_report_of_results
from mae_core.report.figures import confusion
from mae_core.report.summary import Summary
from mae_core.report.tables import claim_rows, feature_rows, main_rows, mask_token_rows, minutes, sampling_rows
from mae_core.report.text.findings import confusion_caption
from mae_core.report.text.front import abstract
from mae_core.report.text.method import data
from mae_core.study.parameters import ReportParameters
from mae_core.study.study import Study
from mae_core.training import runs

ROOT = Path(__file__).parents[1]
SMALL = {
    "image_size: 64": "image_size: 16",
    "patch_size: 8": "patch_size: 4",
    "width: 96": "width: 24",
    "depth: 4": "depth: 1",
}
SMALL |= {"epochs: 100": "epochs: 2", "epochs: 50": "epochs: 2", "warmup_epochs: 10": "warmup_epochs: 1"}
SMALL |= {"warmup_epochs: 5": "warmup_epochs: 1", "batch_size: 64": "batch_size: 8"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project; a function writes a copy of own-images.yaml with changed lines and reads it."""
    (tmp_path / "params").mkdir()
    monkeypatch.chdir(tmp_path)

    def copy(name, **changes):
        text = (ROOT / "params" / "own-images.yaml").read_text(encoding="utf-8")
        for old, new in {"study: own-images": f"study: {name}", **SMALL, **changes}.items():
            assert old in text
            text = text.replace(old, new)
        Path("params", f"{name}.yaml").write_text(text, encoding="utf-8")
        return Study.read(f"params/{name}.yaml")

    return copy


def train(study):
    """All runs of a study, as Snakemake orders them."""
    for case in study.cases:
        for stage in study.stages(case):
            getattr(runs, stage)(study.run(case, 0, stage))
    return Summary.read(ReportParameters(study=study.name))


def text_of(page):
    """The words of a page, without its style and its pictures."""
    return re.sub(r"<style.*?</style>|<[^>]*>", " ", page.read_text(encoding="utf-8"), flags=re.S)


def test_a_folder_of_odd_images_becomes_a_report(project, tmp_path):
    write(tmp_path / "my $photos_1$")
    study = project("mine", **{"data_dir: data/own-images": f'data_dir: "{tmp_path}/my $photos_1$"'})
    summary = train(study)
    write_report_of_results(Path("outputs/mine"), Path("report/mine"))
    told = text_of(Path("report/mine/index.html"))
    assert Path("report/mine/report.pdf").read_bytes().startswith(b"%PDF")
    for word in ("CIFAR", "student", "Krizhevsky", "84.4", "84.9", "3.3×", " nan "):
        assert word.lower() not in told.lower(), word
    for words in (
        "22 training and 22 test images of 16×16 pixels; 2 classes", "images of one's own (my $photos_1$)", "red sky",
        "it's &quot;blue&quot;\\n$x$", "A masked autoencoder (MAE)", "Pre-training beats training from scratch",
    ):  # fmt: skip
        assert words in told.replace('"', "&quot;").replace("&#x27;", "'").replace("&#39;", "'"), words
    assert [row[0] for row in main_rows(summary)][1:3] == ["last epoch", "best epoch"]
    assert {len(row) for row in mask_token_rows(summary)} == {3}
    assert {len(row) for row in sampling_rows(summary)} == {4}
    assert {row[-1] for row in claim_rows(summary)[1:]} == {"paper", "this study"}


def test_images_without_classes_are_pre_trained_on_and_reported(project, tmp_path):
    for i in range(40):
        Image.new("RGB", (20, 30), (5 * i, 80, 200)).save(tmp_path / f"{i}.jpg")
    only = {"data_dir: data/own-images": "data_dir: .", "# pretrain_only": "pretrain_only"}
    with pytest.raises(ParameterError, match="case scratch starts from scratch, and pretrain_only is true"):
        project("plain", **only)
    with pytest.raises(ParameterError, match=r"plain, case random-75, finetune: .* holds images without classes"):
        project("plain", **{"data_dir: data/own-images": "data_dir: ."})
    study = project("plain", **only, **{"  scratch: ": "# scratch: "})
    assert study.stages("random-75") == ("pretrain",)
    with pytest.raises(ParameterError, match=r"the study has pretrain_only: true: it has no fine-tuning"):
        study.run("random-75", 0, "finetune")
    summary = train(study)
    assert summary.seeds == [0]
    assert "36 training and 4 test images of 16×16 pixels; classes are not used" in data(summary)
    assert "dB (PSNR); no classifier was fine-tuned" in abstract(summary)
    write_report_of_results(Path("outputs/plain"), Path("report/plain"))
    told = " ".join(text_of(Path("report/plain/index.html")).split())
    for words in (
        "CIFAR",
        "accuracy of the last epoch",
        "Fine-tuning. ",
        "confuses",
        "not run",
        "k-NN",
        "fine-tuned default",
        "()",
    ):
        assert words not in told, words
    assert "Last run: " in told
    assert "here, no case has been fine-tuned" in told
    assert {row[0]: row[1:] for row in main_rows(summary)}["minutes"] == [
        minutes(summary.cases["random-75"].estimate("wall"))
    ]
    page = Path("report/plain/index.html").read_text(encoding="utf-8")
    labels = set(re.findall(r'id="((?:fig|tab)-[\w-]+)"', page))
    assert labels == {
        "fig-environment", "tab-main", "fig-reconstructions", "fig-curves", "tab-features", "tab-cost", "tab-recipe",
        "tab-provenance",
    }  # fmt: skip
    assert set(re.findall(r'href="#((?:fig|tab)-[\w-]+)"', page)) <= labels
    assert not re.search(r"<td[^>]*>–</td>", page)
    done = papermill.execute_notebook(
        ROOT / "notebooks" / "ablations.ipynb", "ablations.ipynb", {"study": "plain"}, kernel_name="python3",
        progress_bar=False,
    )  # fmt: skip
    printed = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", []))
    assert re.search(r"random-75 +seeds finished: \[0\]", printed)


def test_images_that_are_added_or_changed_are_trained_on_again(tmp_path):
    data = tmp_path / "photos"
    data.mkdir()
    for i in range(12):
        Image.new("RGB", (16, 16), (9 * i, 40, 60)).save(data / f"{i}.png")
    shared = {
        "dataset": "folder",
        "data_dir": "data",
        "image_size": 16,
        "batch_size": 4,
        "threads": 1,
        "width": 24,
        "depth": 1,
    }
    content = {"study": "tiny", "pretrain_only": True, "seeds": [0], "shared": shared | {"decoder_width": 24}}
    checkout = Checkout(tmp_path / "project", data, content | {"pretrain": {"epochs": 1}, "cases": {"random-75": {}}})
    checkout.snakemake("train")
    assert "pretrain" not in checkout.planned("train")
    os.utime(data / "3.png")  # as in a copy of the folder
    assert "pretrain" not in checkout.planned("train")
    Image.new("RGB", (18, 18), (200, 40, 60)).save(data / "3.png")
    assert checkout.planned("train")["pretrain"] == {"random-75"}
    shutil.rmtree(checkout.folder / ".snakemake")  # as in a clone with published results
    assert "seed0/pretrain is out of date: the images in data have changed since" in checkout.snakemake("-n", "train")
    assert checkout.planned("train")["pretrain"] == {"random-75"}
    (data / "4.png").unlink()
    (data / "4.png").symlink_to("/etc/hostname")
    told = checkout.snakemake("-n", "train", check=False)
    assert "4.png is a link that leads out of" in told
    assert "Traceback" not in told


def test_a_study_that_only_pre_trains_is_planned_without_fine_tuning(project, tmp_path):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 30)).save(tmp_path / "b.png")
    changes = {"data_dir: data/own-images": "data_dir: .", "# pretrain_only": "pretrain_only", "  scratch: ": "# scratch: "}
    project("plain", **changes)
    content = yaml.safe_load(Path("params/plain.yaml").read_text(encoding="utf-8"))
    checkout = Checkout(tmp_path / "project", tmp_path, content | {"shared": content["shared"] | {"data_dir": "data"}})
    assert set(checkout.planned()) == {"pretrain", "ablations", "report", "table", "render", "all"}


def test_the_file_to_copy_says_where_images_belong():
    with pytest.raises(
        ParameterError, match=r"data_dir is 'data/own-images': there is no such folder; it must hold train/"
    ):
        Study.read(ROOT / "params" / "own-images.yaml")


def test_a_hundred_classes_have_a_top_5_row_and_the_most_confused_pairs(project, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_cifar100(tmp_path / "data", monkeypatch)
    changes = {"dataset: folder": "dataset: cifar100", "data_dir: data/own-images": "data_dir: data"}
    summary = train(project("hundred", **changes))
    rows = {row[0]: row[1:] for row in main_rows(summary)}
    assert len(rows["top-5"]) == 2
    assert "–" not in rows["top-5"]
    assert "student's" not in rows
    assert confusion_caption(summary).startswith("The pairs of classes")
    assert "100 classes: class 0, class 1, " in data(summary)
    assert "and 88 more" in data(summary)
    assert "On CIFAR-100, an encoder" in abstract(summary)
    folder = summary.cases["random-75"].folder("finetune")
    names = [label.get_text() for label in confusion(folder).axes[0].get_yticklabels()]
    assert len(names) == 15
    assert all(re.fullmatch(r"class \d+ → class \d+", name) for name in names)


def test_a_report_on_own_images_shows_what_the_study_has(project, tmp_path):
    """Two cases with one kind of masks, at another size in fine-tuning: no rows of dashes, no switch, no missing runs."""
    write(tmp_path / "photos")
    sizes = {"finetune:\n": "finetune:\n  image_size: 32\n"}
    study = project("pair", **{"data_dir: data/own-images": f"data_dir: {tmp_path}/photos"}, **sizes)
    summary = train(study)
    write_report_of_results(Path("outputs/pair"), Path("report/pair"))
    page = Path("report/pair/index.html").read_text(encoding="utf-8")
    told = " ".join(text_of(Path("report/pair/index.html")).split())
    labels = set(re.findall(r'id="((?:fig|tab)-[\w-]+)"', page))
    assert labels >= {"tab-main", "fig-accuracy", "fig-confusion", "tab-features", "tab-claims", "tab-sensitivity"}
    assert not labels & {"fig-samplings", "tab-tokens", "tab-sampling", "tab-ratio", "fig-ratio", "tab-work"}
    assert set(re.findall(r'href="#((?:fig|tab)-[\w-]+)"', page)) <= labels
    for words in ("not run", "We compare two choices", "Block masks", "kind of mask.", "has not run"):
        assert words not in told, words
    for rows in (main_rows(summary), feature_rows(summary), mask_token_rows(summary), sampling_rows(summary)):
        assert not [row for row in rows if set(row[1:]) == {"–"}]
    assert (
        "in pre-training, 16×16 pixels; in fine-tuning, and for all accuracies after it, images have 32×32 pixels" in told
    )
    assert "bao2022" not in page
