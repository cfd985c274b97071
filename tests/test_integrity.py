"""Every number of a published report is computed once more here, from the raw files of its runs and by other code."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import scipy.stats
import yaml

ROOT = Path(__file__).parents[1]
STUDIES = sorted(
    path.parent.name for path in ROOT.glob("report/*/index.html") if (ROOT / "outputs" / path.parent.name).exists()
)
STUDIES = [name for name in STUDIES if (ROOT / "outputs" / name / "results.csv").exists()]
STUDENT = {"random-75": "84.4", "mask-tokens": "80.6", "block-50": "85.1", "block-75": "83.7", "grid-75": "82.0"}
PAPER = {"random-75": "84.9", "mask-tokens": "84.2", "block-50": "83.9", "block-75": "82.8", "grid-75": "84.0"}
LABELS = {
    "random 75 %": "random-75", "random 75 % + mask tokens": "mask-tokens", "block 50 %": "block-50",
    "block 75 %": "block-75", "grid 75 %": "grid-75", "from scratch": "scratch",
}  # fmt: skip


class Report(HTMLParser):
    """A report's tables (id to rows of cells), its sentences, and the runs that its figures and tables name."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.text, self.links, self.id, self.cell, self.skip = {}, "", [], "", None, 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.skip += tag in ("style", "svg", "code", "title")
        if tag == "figure":
            self.id = attrs.get("id", "")
            self.tables.setdefault(self.id, [])
        if tag == "tr":
            self.tables[self.id].append([])
        if tag in ("td", "th"):
            self.cell = ""
        if tag == "a" and attrs.get("href", "").startswith("notebooks/"):
            self.links.append((self.id, attrs["href"]))

    def handle_endtag(self, tag):
        self.skip -= tag in ("style", "svg", "code", "title")
        if tag in ("td", "th"):
            self.tables[self.id][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data
        elif not self.skip:
            self.text += data


class Raw:
    """A study's raw files."""

    def __init__(self, folder):
        self.folder = folder
        self.seeds = yaml.safe_load((ROOT / "params" / f"{folder.name}.yaml").read_text())["seeds"]

    def metric(self, case, stage, *keys):
        found = []
        for seed in self.seeds:
            path = self.folder / case / f"seed{seed}" / stage / "metrics.json"
            if path.exists():
                value = json.loads(path.read_text())
                for key in keys:
                    value = value[key]
                found.append(value)
        return found

    def history(self, case, seed):
        return json.loads((self.folder / case / f"seed{seed}" / "finetune" / "history.json").read_text())


def half_width(values):
    return scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.tstd(values) / len(values) ** 0.5


def cell(values, digits=2, scale=1.0):
    """Mean ± half width, as the report writes it; a dash without values."""
    if not values:
        return "–"
    told = f"{sum(values) / len(values) * scale:,.{digits}f}"
    return told if len(values) == 1 else f"{told} ± {half_width(values) * scale:,.{digits}f}"


def times(values, base):
    return f"{sum(values) / len(values) / (sum(base) / len(base)):.2f}×" if values and base else "–"


def signed(ours, theirs, digits=2, scale=1.0, unit=" points"):
    """A difference paired by seed, as the report writes it."""
    pairs = [(a - b) * scale for a, b in zip(ours, theirs, strict=True)]
    if not pairs:
        return "–"
    told = f"{sum(pairs) / len(pairs):+.{digits}f}".replace("-", "−")
    return told + ("" if len(pairs) == 1 else f" ± {half_width(pairs):.{digits}f}") + unit


def check(page, folder):
    """Raise AssertionError for a number, a verdict or a link of the report that the raw files do not give."""
    report, raw = Report(page), Raw(folder)
    accuracy = {case: raw.metric(case, "finetune", "last_epoch_accuracy") for case in LABELS.values()}
    linear = {case: raw.metric(case, "finetune", "probes", "linear") for case in LABELS.values()}
    flops = {case: raw.metric(case, "pretrain", "flops_per_image") for case in LABELS.values()}
    loss = {case: raw.metric(case, "pretrain", "test_loss") for case in LABELS.values()}
    memory = {case: raw.metric(case, "pretrain", "peak_memory_bytes") for case in LABELS.values()}
    base = flops["random-75"]

    tokens = [row for row in report.tables["tab-tokens"] if row[0] in ("with mask tokens", "without")]
    assert [row[1:5] for row in tokens] == [
        [cell(accuracy[c]), STUDENT[c], PAPER[c], times(flops[c], base)] for c in ("mask-tokens", "random-75")
    ]
    sampling = report.tables["tab-sampling"][-4:]
    for row, case in zip(sampling, ("random-75", "block-50", "block-75", "grid-75"), strict=True):
        assert row[:2] == case.split("-")
        assert row[2:] == [cell(accuracy[case]), STUDENT[case], PAPER[case], times(flops[case], base)]

    rows = report.tables["tab-accuracy"][-6:]
    assert {LABELS[row[0]] for row in rows} == set(LABELS.values())
    for row in rows:
        case = LABELS[row[0]]
        assert row[1:] == [
            cell(accuracy[case]),
            cell(raw.metric(case, "finetune", "best_epoch_accuracy")),
            cell(linear[case]),
            cell(raw.metric(case, "finetune", "probes", "knn")),
            cell(loss[case], 4),
            cell(raw.metric(case, "pretrain", "test_psnr")),
        ]
    for row in report.tables["tab-cost"][-6:]:
        case = LABELS[row[0]]
        assert row[1:] == [
            cell(flops[case], 1, 1e-6),
            times(flops[case], base),
            cell(raw.metric(case, "pretrain", "train_seconds"), 1, 1 / 60),
            cell(raw.metric(case, "pretrain", "images_per_second"), 0),
            cell(memory[case], 0, 2**-20),
            cell(raw.metric(case, "finetune", "train_seconds"), 1, 1 / 60),
            cell(raw.metric(case, "finetune", "images_per_second"), 0),
        ]

    differences = {
        "beats training from scratch": signed(accuracy["random-75"], accuracy["scratch"]),
        "Mask tokens in the encoder lower": signed(accuracy["random-75"], accuracy["mask-tokens"]),
        "saves memory": signed(memory["mask-tokens"], memory["random-75"], 0, 2**-20, " MiB"),
        "Block-wise 50 % beats": signed(accuracy["block-50"], accuracy["random-75"]),
        "Random 75 % beats block-wise": signed(accuracy["random-75"], accuracy["block-75"]),
        "Random 75 % beats grid-wise": signed(accuracy["random-75"], accuracy["grid-75"]),
        "Grid-wise masking is the easier": signed(loss["random-75"], loss["grid-75"], 4, 1, ""),
        "Block-wise masking is harder": signed(loss["block-75"], loss["random-75"], 4, 1, ""),
        "A lower ratio is an easier": signed(loss["block-75"], loss["block-50"], 4, 1, ""),
        "more FLOPs": times(flops["mask-tokens"], base),
    }
    ahead = [
        a > b
        for seed in raw.seeds
        for a, b in zip(*(raw.history(c, seed)["test_accuracy"] for c in ("random-75", "scratch")), strict=True)
    ]
    differences["after every epoch"] = f"in {sum(ahead)} of {len(ahead)}"
    claims = report.tables["tab-claims"][1:]
    for start, told in differences.items():
        (row,) = [row for row in claims if start in row[0]]
        assert row[2] == told, row
        numbers = [float(x.replace("−", "-")) for x in re.findall(r"[+−-]?\d+\.?\d*", told.replace(",", ""))]
        if "points" in told or start.startswith(("Grid", "Block-wise masking", "A lower", "saves")):
            if len(raw.seeds) == 1:
                assert row[3] == f"undecided (one seed; points {'for' if numbers[0] > 0 else 'against'} it)", row
            else:
                decided = abs(numbers[0]) > numbers[1]
                expected = ("supported" if numbers[0] > 0 else "contradicted") if decided else "undecided"
                assert row[3].startswith(expected), row

    # Sentences: each number with two or more decimals must be one of those that the runs give.
    pool = {cell(v, d)[: cell(v, d).find(" ")] if " " in cell(v, d) else cell(v, d) for kind, d in
            ((accuracy, 2), (linear, 2), (loss, 4)) for v in kind.values()}  # fmt: skip
    pool |= {cell(raw.metric(case, "pretrain", "test_psnr")).split(" ")[0] for case in LABELS.values()}
    pool |= {times(value, base).rstrip("×") for value in flops.values()}
    for kind in (accuracy, linear):
        pool |= {cell(value).split("± ")[-1] for value in kind.values()}
        for one, other in itertools.permutations(kind.values(), 2):
            pool |= set(re.findall(r"\d+\.\d+", signed(one, other)))
    pool |= {cell(value, 4).split("± ")[-1] for value in loss.values()}
    pool |= {cell(raw.metric(case, "pretrain", "test_psnr")).split("± ")[-1] for case in LABELS.values()}
    provenance = json.dumps([json.loads(path.read_text()) for path in folder.rglob("provenance.json")])
    body = (
        report.text.split("References")[0]
        if report.text.count("References") == 1
        else report.text.rsplit("References", 1)[0]
    )
    for shown in re.findall(r"(?<![\d.])\d+\.\d{2,}(?![\d.]|\d)", body):
        assert shown in pool or shown in provenance, f"no run gives {shown}"

    # Links: what a figure or a table names is a run with results, or a notebook of the whole study.
    assert report.links
    for _, link in report.links:
        assert (ROOT / "report" / folder.name / link).exists(), link
        name = Path(link).stem
        if name not in ("ablations", "report"):
            case, seed, stage = re.fullmatch(r"(.+)-(seed\d+)-(pretrain|finetune)", name).groups()
            assert (folder / case / seed / stage / "metrics.json").exists(), f"{link} has no run behind it"


@pytest.fixture(params=STUDIES)
def published(request, tmp_path):
    """A published report's page, and a copy of its results."""
    shutil.copytree(ROOT / "outputs" / request.param, tmp_path / request.param)
    return (ROOT / "report" / request.param / "index.html").read_text(), tmp_path / request.param


def test_every_number_of_a_published_report_comes_from_its_runs(published):
    check(*published)


def test_there_is_a_published_report():
    assert "laptop" in STUDIES


@pytest.mark.parametrize(
    ("stage", "key"), [("finetune", "last_epoch_accuracy"), ("pretrain", "test_loss"), ("pretrain", "train_seconds")]
)
def test_another_result_is_noticed(published, stage, key):
    page, folder = published
    path = folder / "block-75" / "seed0" / stage / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics[key] *= 3
    path.write_text(json.dumps(metrics))
    with pytest.raises(AssertionError):
        check(page, folder)


def test_a_missing_run_is_noticed(published):
    page, folder = published
    shutil.rmtree(folder / "grid-75" / "seed0" / "pretrain")
    with pytest.raises(AssertionError):
        check(page, folder)


def test_a_number_in_a_sentence_that_no_run_gives_is_noticed(published):
    page, folder = published
    (shown,) = re.findall(r"masking reaches (\d+\.\d\d)", page)
    with pytest.raises(AssertionError, match=r"no run gives 98\.76"):
        check(page.replace(f"masking reaches {shown}", "masking reaches 98.76"), folder)


def test_a_figure_without_its_run_is_noticed(published):
    page, folder = published
    with pytest.raises(AssertionError):
        check(
            page.replace("notebooks/random-75-seed0-pretrain.html", "notebooks/random-75-seed7-pretrain.html"), folder
        )
