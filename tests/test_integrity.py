"""Recompute every number of a published report from the raw files of its runs, with independent code."""

import itertools
import json
import math
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import yaml
from checkout import published as published_studies
from PIL import Image

ROOT = Path(__file__).parents[1]
STUDIES = published_studies()
STUDENT = {"random-75": "84.4", "mask-tokens": "80.6", "block-50": "85.1", "block-75": "83.7", "grid-75": "82.0"}
PAPER = {"random-75": "84.9", "mask-tokens": "84.2", "block-50": "83.9", "block-75": "82.8", "grid-75": "84.0"}
LABELS = {
    "random 75 %": "random-75", "random 75 % + mask tokens": "mask-tokens", "block 50 %": "block-50",
    "block 75 %": "block-75", "grid 75 %": "grid-75", "from scratch": "scratch",
}  # fmt: skip


class Report(HTMLParser):
    """A report's tables (rows of cells by id), its text, and the notebooks that its figures and tables link to."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.text, self.links, self.id, self.cell, self.skip = {}, "", [], "", None, 0
        self.feed(page.replace("\N{NO-BREAK SPACE}", " "))

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
    """A study's raw files, with every value by seed."""

    def __init__(self, folder):
        self.folder = folder
        self.study = yaml.safe_load((ROOT / "params" / f"{folder.name}.yaml").read_text(encoding="utf-8"))
        self.seeds = self.study["seeds"] + self.study.get("more_seeds", [])

    def read(self, case, stage, file):
        paths = {seed: self.folder / case / f"seed{seed}" / stage for seed in self.seeds}
        return {
            k: json.loads((p / file).read_text(encoding="utf-8")) for k, p in paths.items() if (p / "metrics.json").exists()
        }

    def metric(self, case, stage, *keys):
        found = {}
        for seed, value in self.read(case, stage, "metrics.json").items():
            for key in keys:
                value = value[key]
            found[seed] = value
        return found

    def epochs(self, case):
        """The number of pre-training epochs, which is the same for every seed."""
        (epochs,) = {parameters["epochs"] for parameters in self.read(case, "pretrain", "parameters.json").values()}
        return epochs

    def of_all(self, stage, *keys):
        """One metric of all cases, including those of the sweep."""
        return {
            case: self.metric(case, stage, *keys)
            for case in [*LABELS.values(), *self.study.get("sweep", {}), *self.study.get("lengths", {})]
        }


def half_width(values):
    return scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.tstd(values) / len(values) ** 0.5


def mean(values):
    return math.fsum(values.values()) / len(values)


def cell(values, digits=2, scale=1.0):
    """Mean ± half the width of the 95 % confidence interval, as the report writes it; a dash without values."""
    if not values:
        return "–"
    told = f"{mean(values) * scale:,.{digits}f}"
    return told if len(values) == 1 else f"{told} ± {half_width(list(values.values())) * scale:,.{digits}f}"


def middle(values, digits=0, scale=1.0):
    """The median, as the report writes times, speeds and memory."""
    return f"{statistics.median(values.values()) * scale:,.{digits}f}" if values else "–"


def minutes(raw, case):
    first, second = raw.metric(case, "pretrain", "wall_seconds"), raw.metric(case, "finetune", "wall_seconds")
    wall = second if case == "scratch" else {k: first[k] + second[k] for k in first.keys() & second.keys()}
    return middle(wall, 1, 1 / 60)


def times(values, base):
    return f"{mean(values) / mean(base):.2f}×" if values and base else "–"


def paired(ours, theirs):
    """Differences by seed, for the seeds that both have."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def plus(value, digits=2):
    return f"{value:+.{digits}f}".replace("-", "−")


def signed(ours, theirs, digits=2, scale=1.0, unit=" points"):
    """A difference paired by seed, as the report writes it."""
    pairs = [value * scale for value in paired(ours, theirs).values()]
    if not pairs:
        return "–"
    told = plus(math.fsum(pairs) / len(pairs), digits)
    return told + ("" if len(pairs) == 1 else f" ± {half_width(pairs):.{digits}f}") + unit


ORDER = ("contradicted", "contradicted (smaller", "no difference", "undecided", "supported (smaller", "supported")


def place(verdict):
    """The place of a verdict in ORDER, from the least to the most favourable."""
    return max(range(len(ORDER)), key=lambda k: len(ORDER[k]) * verdict.startswith(ORDER[k]))


def judged(values, small):
    """The verdict on a difference by seed that is claimed to be positive; ``small``: half a point, or None."""
    values = list(values.values())
    middle = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"undecided (one seed: {'for' if middle > 0 else 'against'} it)"
    low, high = middle - half_width(values), middle + half_width(values)
    within = small is not None and -small < low <= high < small
    if low > 0 or high < 0:
        return ("supported" if low > 0 else "contradicted") + (" (smaller than matters)" if within else "")
    return "no difference that matters" if within else f"undecided ({len(values)} seeds)"


def verdict(*differences, small=None):
    """The place of the difference that decides whether all of them are positive, and the verdict."""
    if not all(differences):
        return None, "not run"
    told = [judged(difference, small) for difference in differences]
    against = [k for k, words in enumerate(told) if words.startswith("contradicted")]
    if against and p_value_of(differences, "contradicted") < 0.05:
        k = min(against, key=lambda k: scipy.stats.ttest_1samp(list(differences[k].values()), 0).pvalue)
        return k, told[k]
    told = [f"undecided ({len(differences[k])} seeds)" if k in against else words for k, words in enumerate(told)]
    k = min(range(len(told)), key=lambda k: (place(told[k]), mean(differences[k])))
    return k, told[k]


def p_value_of(differences, told):
    """The p-value of a claim that all differences by seed are positive, given its verdict; None if it has none."""
    p_values = [scipy.stats.ttest_1samp(list(d.values()), 0).pvalue if len(d) > 1 else None for d in differences]
    negative = [p for p, d in zip(p_values, differences, strict=True) if p and mean(d) < 0]
    if told.startswith("contradicted") or (len(differences) > 1 and negative and min(negative) < 0.05):
        return min(1.0, min(negative) * len(differences))
    return None if None in p_values else max(p_values)


def findable(difference, digits=2, scale=1.0):
    """The smallest difference that a paired t test with these seeds finds in 80 of 100 cases, as the report writes it."""
    values, freedom = list(difference.values()), len(difference) - 1
    if not freedom:
        return "–"
    critical = scipy.stats.t.ppf(0.975, freedom)
    shift = scipy.optimize.brentq(lambda shift: scipy.stats.nct.sf(critical, freedom, shift) - 0.8, 0.1, 30)
    return f"{shift * scipy.stats.sem(values) * scale:.{digits}f}"


def found_in_all(differences, k, decided, **how):
    """What was findable in the one difference that contradicts a claim, or in all of them: the largest."""
    if decided.startswith("contradicted"):
        return findable(differences[k], **how)
    told = [findable(difference, **how) for difference in differences]
    return "–" if "–" in told else max(told, key=float)


def corrected(p_values):
    """Holm's correction: the largest, up to each place in the order of size, of p times the number of those not below."""
    return [min(1, max(q * sum(r >= q for r in p_values) for q in p_values if q <= p)) for p in p_values]


def chance(p):
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def check(page, folder):
    """Raise AssertionError if a number, verdict or link of the report does not follow from the raw files."""
    report, raw = Report(page), Raw(folder)
    accuracy, best = (raw.of_all("finetune", f"{which}_epoch_accuracy") for which in ("last", "best"))
    linear, knn = (raw.of_all("finetune", "probes", which) for which in ("linear", "knn"))
    flops, loss, psnr, memory, speed = (
        raw.of_all("pretrain", which)
        for which in ("flops_per_image", "test_loss", "test_psnr", "peak_memory_bytes", "images_per_second")
    )
    base = flops["random-75"]
    check_main_table(report, raw, accuracy, best, linear, knn, flops, speed, memory)

    tokens = [row for row in report.tables["tab-tokens"] if row[0] in ("with mask tokens", "without")]
    assert [row[1:5] for row in tokens] == [
        [cell(accuracy[c]), STUDENT[c], PAPER[c], times(flops[c], base)] for c in ("mask-tokens", "random-75")
    ]
    sampling = report.tables["tab-sampling"][-4:]
    for row, case in zip(sampling, ("random-75", "block-50", "block-75", "grid-75"), strict=True):
        assert row[:2] == case.split("-")
        assert row[2:] == [cell(accuracy[case]), STUDENT[case], PAPER[case], times(flops[case], base)]

    rows = [row for row in report.tables["tab-features"] if row[0] in LABELS]
    assert {LABELS[row[0]] for row in rows} == set(raw.study["cases"])
    for row in rows:
        case = LABELS[row[0]]
        assert row[1:] == [cell(linear[case]), cell(knn[case]), cell(loss[case], 4), cell(psnr[case])]
    rows = [row for row in report.tables["tab-cost"] if row[0] in LABELS]
    assert {LABELS[row[0]] for row in rows} == set(raw.study["cases"])
    for row in rows:
        case = LABELS[row[0]]
        assert row[1:] == [
            middle(flops[case], 1, 1e-6),
            times(flops[case], base),
            middle(raw.metric(case, "pretrain", "train_seconds"), 1, 1 / 60),
            middle(speed[case]),
            middle(memory[case], 0, 2**-20),
            middle(raw.metric(case, "finetune", "train_seconds"), 1, 1 / 60),
            middle(raw.metric(case, "finetune", "images_per_second")),
            middle(raw.metric(case, "finetune", "peak_memory_bytes"), 0, 2**-20),
        ]
    swept = check_sweep(report, raw, accuracy, linear, knn, flops, loss)
    check_sensitivity(report, raw, accuracy)
    check_claims(report, raw, accuracy, linear, flops, loss, psnr, memory)
    check_chance(report, raw, accuracy)
    check_beside(report, raw, accuracy)
    grown = check_lengths(report, raw, accuracy)

    # Sentences: each number with two or more decimals must come from the runs.
    pool = {number for kind, digits in ((accuracy, 2), (linear, 2), (loss, 4), (psnr, 2)) for value in kind.values()
            for number in cell(value, digits).split(" ± ")}  # fmt: skip
    pool |= grown | swept
    pool |= {times(value, base).rstrip("×") for value in flops.values()}
    if flops.get("random-75-longer") and flops["block-50"]:
        work = [mean(flops[case]) * raw.epochs(case) for case in ("random-75-longer", "block-50")]
        pool.add(f"{work[0] / work[1]:.2f}")
    for kind in (accuracy, linear):
        for one, other in itertools.permutations(kind.values(), 2):
            pool |= set(re.findall(r"\d+\.\d+", signed(one, other)))
    told = [json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("provenance.json")]
    pool |= {version for provenance in told for version in provenance["versions"].values()}
    body = (
        report.text.split("References")[0]
        if report.text.count("References") == 1
        else report.text.rsplit("References", 1)[0]
    )
    for shown in re.findall(r"(?<![\d.])\d+\.\d{2,}(?![\d.]|\d)", body):
        assert shown in pool, f"no run gives {shown}"

    # Links: a figure or a table must link to a run with results, or to a notebook of the whole study.
    assert report.links
    for _, link in report.links:
        assert (ROOT / "report" / folder.name / link).exists(), link
        name = Path(link).stem
        if name not in ("ablations", "report"):
            case, seed, stage = re.fullmatch(r"(.+)-(seed\d+)-(pretrain|finetune)", name).groups()
            assert (folder / case / seed / stage / "metrics.json").exists(), f"{link} has no run behind it"


def check_main_table(report, raw, accuracy, best, linear, knn, flops, speed, memory):
    columns = list(zip(*report.tables["tab-main"], strict=True))[1:]
    assert {LABELS[column[0]] for column in columns} == set(raw.study["cases"])
    for label, *told in columns:
        case = LABELS[label]
        assert told == [
            cell(accuracy[case]), STUDENT.get(case, "–"), PAPER.get(case, "–"), cell(best[case]), cell(linear[case]),
            cell(knn[case]), times(flops[case], flops["random-75"]), minutes(raw, case), middle(speed[case]),
            middle(memory[case], 0, 2**-20),
        ]  # fmt: skip


def shared_seeds(values, cases):
    """The values of only those seeds that all completed cases share."""
    shared = set.intersection(*(set(values[case]) for case in cases if values.get(case)))
    return {case: {seed: values[case][seed] for seed in values.get(case, {}) if seed in shared} for case in cases}


def check_sweep(report, raw, accuracy, linear, knn, flops, loss):
    """Check both tables; return the numbers of the ratios over the seeds that all of them share."""
    ran = [case for case in ("random-25", "random-50", "random-75", "random-90") if accuracy.get(case)]
    alike = [shared_seeds(values, ran) for values in (flops, loss, accuracy, linear, knn)]
    expected = [
        [
            case.split("-")[1], times(alike[0][case], flops["random-75"]), cell(alike[1][case], 4),
            *(cell(values[case]) for values in alike[2:]),
        ]
        for case in ran
    ]  # fmt: skip
    assert ("tab-ratio" in report.tables) == (len(ran) > 1)
    if len(ran) > 1:
        assert report.tables["tab-ratio"][1:] == expected
    known = {number for values in alike[2:4] for case in ran for number in cell(values[case]).split(" ± ")}
    compared = ("random-75", "block-50", "random-75-longer")
    assert ("tab-work" in report.tables) == bool(accuracy.get("random-75-longer"))
    if "tab-work" not in report.tables:
        return known
    accuracy, linear = (shared_seeds(values, compared) for values in (accuracy, linear))
    for row, case in zip(report.tables["tab-work"][1:], compared, strict=True):
        done, usual = (mean(flops[which]) * raw.epochs(which) for which in (case, "random-75"))
        assert row[1:] == [str(raw.epochs(case)), f"{done / usual:.2f}×", cell(accuracy[case]), cell(linear[case])]
    return known


def check_sensitivity(report, raw, accuracy):
    header, *rows = report.tables["tab-sensitivity"]
    seeds = [int(name.split()[1]) for name in header[1:-1]]
    assert seeds == sorted({seed for values in accuracy.values() for seed in values})
    assert {LABELS[row[0]] for row in rows} == set(raw.study["cases"]) - {"random-75"}
    for label, *told, deviation in rows:
        differences = paired(accuracy[LABELS[label]], accuracy["random-75"])
        assert told == [plus(differences[seed]) if seed in differences else "–" for seed in seeds]
        several = len(differences) > 1
        assert deviation == (f"{scipy.stats.tstd(list(differences.values())):.2f}" if several else "–")


def on_one_machine(raw, values, case, other):
    """The values of a case from the seeds that both cases pre-trained on the same machine, with as many threads."""
    machines = [
        {seed: (told["device"], told["precision"]) for seed, told in raw.read(name, "pretrain", "provenance.json").items()}
        for name in (case, other)
    ]
    return {seed: value for seed, value in values.items() if machines[0][seed] == machines[1].get(seed)}


def check_claims(report, raw, accuracy, linear, flops, loss, psnr, memory):
    default, mib = "random-75", {"digits": 0, "scale": 2**-20, "unit": " MiB"}
    ran = memory["mask-tokens"].keys() & memory[default].keys()
    memory = memory | {"mask-tokens": on_one_machine(raw, memory["mask-tokens"], "mask-tokens", default)}
    others = ("random-25", "random-50", "random-90")
    claimed = {
        "Pre-training beats": (accuracy, {}, (default, "scratch")),
        "Mask tokens in the encoder lower": (accuracy, {}, (default, "mask-tokens")),
        "Skipping mask tokens saves": (memory, mib, ("mask-tokens", default)),
        "75 % masking can be learned": (linear, {}, (default, "scratch")),
        "Block-wise 50 % beats random 75 %": (accuracy, {}, ("block-50", default)),
        "Block-wise 50 % beats random 75 % at equal compute": (accuracy, {}, ("block-50", "random-75-longer")),
        "Random 75 % beats block-wise": (accuracy, {}, (default, "block-75")),
        "Random 75 % beats grid-wise": (accuracy, {}, (default, "grid-75")),
        "Grid-wise masking is the easier": (loss, {"digits": 4, "unit": ""}, (default, "grid-75")),
        "Grid-wise masking gives the worst": (linear, {}, *((c, "grid-75") for c in (default, "block-50", "block-75"))),
        "Block-wise masking is harder": (loss, {"digits": 4, "unit": ""}, ("block-75", default)),
        "Block-wise reconstructions are less exact": (psnr, {"unit": " dB"}, (default, "block-75")),
        "A lower ratio is an easier": (loss, {"digits": 4, "unit": ""}, ("block-75", "block-50")),
        "75 % is the best ratio of random masking": (accuracy, {}, *((default, other) for other in others)),
        "75 % is the best ratio for the linear probe": (linear, {}, *((default, other) for other in others)),
    }
    rows = {row[0]: row[1:] for row in report.tables["tab-claims"][1:]}
    assert len(rows) == len(claimed) + 2
    p_values = {}
    for start, (values, how, *pairs) in claimed.items():
        (name,) = [start] if start in rows else [name for name in rows if name.startswith(start)]
        differences = [paired(values.get(one, {}), values.get(other, {})) for one, other in pairs]
        k, decided = verdict(*differences, small=None if how else 0.5)
        decided = "undecided (not on one machine)" if values is memory and k is None and ran else decided
        told, least, p_values[name] = "–", "–", None
        if k is not None:
            one, other = pairs[k]
            told = signed(values[one], values[other], **how)
            if len(pairs) > 1:
                named = one if len({b for _, b in pairs}) == 1 else other
                told = f"{named.replace('-', ' ')} %: {told}"
            least = found_in_all(differences, k, decided, **{key: value for key, value in how.items() if key != "unit"})
            p_values[name] = p_value_of(differences, decided)
        assert rows[name][:3] == [decided, told, least], name
    (name,) = [name for name in rows if name.startswith("Mask tokens in the encoder cost more FLOPs")]
    decided = "supported" if flops["mask-tokens"] else "not run"
    assert rows[name] == [decided, times(flops["mask-tokens"], flops[default]), *"–––", "both"]
    curves = [raw.read(case, "finetune", "history.json") for case in (default, "scratch")]
    seeds = sorted(curves[0].keys() & curves[1].keys())
    by_epoch = [[a - b for a, b in zip(*(c[k]["test_accuracy"] for c in curves), strict=True)] for k in seeds]
    epochs = [dict(enumerate(epoch)) for epoch in zip(*by_epoch, strict=True)]
    k, decided = verdict(*epochs, small=0.5)
    name = "Pre-training is ahead after every epoch"
    p_values[name] = p_value_of(epochs, decided)
    decided = "undecided (one seed)" if len(seeds) == 1 else decided
    measured = f"epoch {k + 1}: {signed(epochs[k], dict.fromkeys(epochs[k], 0.0))}"
    assert rows[name][:3] == [decided, measured, found_in_all(epochs, k, decided)]
    known = {name: p for name, p in p_values.items() if p is not None}
    adjusted = dict(zip(known, corrected(list(known.values())), strict=True))
    for name in p_values:
        assert rows[name][3:5] == [chance(p_values[name]), chance(adjusted.get(name))], name
    directional = {name for name in known if rows[name][0].startswith(("supported", "contradicted"))}
    lasting = {name for name in directional if adjusted[name] < 0.05}
    if len(known) > 1:  # one needs no correction
        if not directional:
            start = f"None of the {len(known)} claims with a p-value is supported or contradicted."
        elif len(directional) == 1:
            survives = "survives" if lasting else "does not survive"
            start = f"With Holm's correction for all {len(known)}, this verdict {survives}."
        else:
            survivors = "all" if lasting == directional else len(lasting)
            start = f"With Holm's correction for all {len(known)}, {survivors} of these verdicts survive"
        assert start in report.text
        lost = report.text.split(start)[1].split("”.")[0] if lasting != directional else ""
        discussed = report.text.split("Mask sampling. Compared with")[1]
        for name in directional if len(directional) > 1 else ():
            assert (f"“{name}" in lost) == (name not in lasting)
        for name in (
            "Block-wise 50 % beats random 75 %",
            "Random 75 % beats block-wise 75 %",
            "Random 75 % beats grid-wise 75 %",
        ):
            told = rows[name][0].replace(" (", ", ").replace(")", "")
            taken_back = ", but not after the correction" if name in directional - lasting else ""
            assert f"“{name}”: {told}{taken_back})" in discussed


def check_chance(report, raw, accuracy):
    """The intervals of accuracies and of differences over seeds and over test images."""
    _, _, *rows = report.tables["tab-chance"]
    assert {LABELS[row[0]] for row in rows} == set(raw.study["cases"])
    for label, *told in rows:
        case, default = LABELS[label], "random-75"
        values, change = accuracy[case], paired(accuracy[case], accuracy[default])
        right, n = mean(values) / 100, 10_000
        middle = scipy.stats.binomtest(round(right * n), n).proportion_ci(0.95, method="wilson")
        assert told[0] == f"{mean(values):.2f}"
        assert float(told[2]) == pytest.approx(50 * (middle.high - middle.low), abs=0.006)
        several = len(values) > 1
        assert told[1] == (f"{half_width(list(values.values())):.2f}" if several else "–")
        if case == default:
            assert told[3:] == ["–"] * 3
            continue
        assert told[3] == plus(mean(change))
        assert told[4] == (f"{half_width(list(change.values())):.2f}" if len(change) > 1 else "–")
        recorded = [
            raw.folder / which / f"seed{k}" / "finetune" / "predictions.png" for which in (case, default) for k in change
        ]
        if not all(path.exists() for path in recorded):
            assert told[5] == "–"
            continue
        pictures = [np.asarray(Image.open(path)).astype(int) for path in recorded]
        right = [picture[0] == picture[1] for picture in pictures]
        more = np.mean(right[: len(change)], axis=0) - np.mean(right[len(change) :], axis=0)
        assert float(told[5]) == pytest.approx(196 * more.std() / len(more) ** 0.5, rel=0.03, abs=0.006)


def check_beside(report, raw, accuracy):
    """The studies that the study's file names, as far as they are on disk."""
    names = [name for name in raw.study.get("beside", []) if list((ROOT / "outputs" / name).glob("*/seed*/*/metrics.json"))]
    if not names:
        assert "tab-beside" not in report.tables
        return
    header, *rows = report.tables["tab-beside"]
    assert header == ["case", raw.folder.name, *names, "student", "paper"]
    others = [Raw(ROOT / "outputs" / name).of_all("finetune", "last_epoch_accuracy") for name in names]
    assert {LABELS[row[0]] for row in rows} == set(LABELS.values())
    for label, *told in rows:
        case = LABELS[label]
        ours = [cell(study[case]) if study[case] else "not run" for study in (accuracy, *others)]
        assert told == [*ours, STUDENT.get(case, "–"), PAPER.get(case, "–")]


def check_lengths(report, raw, accuracy):
    """Accuracies by length of pre-training; returns the numbers that the text may name."""
    kinds = ("random-75", "block-50", "grid-75")
    found = {}
    for case in accuracy:
        kind = next((kind for kind in kinds if case.startswith(kind)), None)
        if kind and accuracy[case] and not case.startswith("mask"):
            found.setdefault(raw.epochs(case), {}).setdefault(kind, accuracy[case])
    found = {epochs: found[epochs] for epochs in sorted(found) if len(found[epochs]) > 1}
    if len(found) < 2:
        assert "tab-lengths" not in report.tables
        return set()
    always = set.intersection(*(set(row) for row in found.values())) or set(kinds)
    shared = set.intersection(*(set(row[kind]) for row in found.values() for kind in row if kind in always))
    if not shared:
        assert "tab-lengths" not in report.tables
        return set()
    same = {
        n: {kind: {k: v for k, v in values.items() if k in shared} for kind, values in row.items() if shared <= set(values)}
        for n, row in found.items()
    }
    _, *rows = report.tables["tab-lengths"]
    changes = {n: [paired(row.get(kind, {}), row.get("random-75", {})) for kind in kinds[1:]] for n, row in same.items()}
    assert rows == [
        [
            str(n), *(cell(row.get(kind, {})) for kind in kinds),
            *(signed(row.get(kind, {}), row.get("random-75", {}), unit="") for kind in kinds[1:]),
        ]
        for n, row in same.items()
    ]  # fmt: skip
    first, last = (changes[n] for n in (min(changes), max(changes)))
    return {number for pair in zip(last, first, strict=True) for number in re.findall(r"\d+\.\d+", signed(*pair))}


@pytest.fixture(params=STUDIES)
def published(request, tmp_path):
    """A published report's page and a copy of its results."""
    shutil.copytree(ROOT / "outputs" / request.param, tmp_path / request.param)
    return (ROOT / "report" / request.param / "index.html").read_text(encoding="utf-8"), tmp_path / request.param


def test_every_number_of_a_published_report_comes_from_its_runs(published):
    check(*published)


def table_under(path, heading):
    """Head and rows of the first table of cases below a heading; the rows by case, numbers by column."""
    lines = (ROOT / path).read_text(encoding="utf-8").split(heading, 1)[1].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| case |"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start : start + 8]]
    header, _, *rows = rows
    return {LABELS[row[0]]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.parametrize(
    ("path", "heading", "study"),
    [("README.md", "# ", ""), ("docs/science.md", "### `night`", "night"), ("docs/science.md", "### `laptop`", "laptop")],
)
def test_the_main_tables_stand_in_the_readme_and_the_docs(path, heading, study):
    """A column of a table of several studies begins with the name of its study."""
    found = table_under(path, heading)
    assert set(found) == set(LABELS.values())
    for case, told in found.items():
        assert len(told) >= 4
        for column, shown in told.items():
            named = re.match(r"`(\w+)`: ", column)
            raw = Raw(ROOT / "outputs" / (named[1] if named else study or "laptop"))
            flops = [raw.metric(which, "pretrain", "flops_per_image") for which in (case, "random-75")]
            expected = {
                "fine-tuned (%)": cell(raw.metric(case, "finetune", "last_epoch_accuracy")),
                "linear probe (%)": cell(raw.metric(case, "finetune", "probes", "linear")),
                "k-NN (%)": cell(raw.metric(case, "finetune", "probes", "knn")),
                "FLOPs": times(*flops),
                "minutes": minutes(raw, case),
                "student's ViT-T/2 (%)": STUDENT.get(case, "–"),
                "paper's ViT-L (%)": PAPER.get(case, "–"),
            }
            has_run = raw.metric(case, "finetune", "last_epoch_accuracy") or "'s " in column
            assert shown == (expected[column.removeprefix(named[0] if named else "")] if has_run else "not run")


def test_there_is_a_published_report_and_each_has_its_page_and_its_results():
    assert "laptop" in STUDIES
    for name in STUDIES:
        assert (ROOT / "report" / name / "index.html").exists()
        assert list((ROOT / "outputs" / name).glob("*/seed*/*/metrics.json"))


@pytest.mark.parametrize(
    ("stage", "key", "seeds"),
    [
        ("finetune", "last_epoch_accuracy", "seed0"),
        ("pretrain", "test_loss", "seed0"),
        ("pretrain", "train_seconds", "seed*"),  # one seed alone need not change the median
    ],
)
def test_another_result_is_noticed(published, stage, key, seeds):
    page, folder = published
    check(page, folder)
    for path in folder.glob(f"block-50/{seeds}/{stage}/metrics.json"):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        metrics[key] *= 3
        path.write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(AssertionError):
        check(page, folder)


def test_a_missing_run_is_noticed(published):
    page, folder = published
    check(page, folder)
    shutil.rmtree(folder / "grid-75" / "seed0" / "pretrain")
    with pytest.raises(AssertionError):
        check(page, folder)


def test_a_number_in_a_sentence_that_no_run_gives_is_noticed(published):
    page, folder = published
    for path in folder.rglob("provenance.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        told |= {"wall_seconds": 98.765, "versions": told["versions"] | {"typst": "98.76.5"}}  # parts of them do not count
        path.write_text(json.dumps(told), encoding="utf-8")
    (shown,) = re.findall(r"masking reaches (\d+\.\d\d)", page)
    with pytest.raises(AssertionError, match=r"no run gives 98\.76"):
        check(page.replace(f"masking reaches {shown}", "masking reaches 98.76"), folder)


def test_a_figure_without_its_run_is_noticed(published):
    page, folder = published
    linked = Report(page).links[0][1]
    with pytest.raises(AssertionError, match="random-75-seed7-pretrain"):
        check(page.replace(linked, "notebooks/random-75-seed7-pretrain.html"), folder)


def test_the_records_are_those_of_the_published_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Records to beat", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    cpu, gpu, best = rows[1:]

    def run(name, stage, case="random-75", seed="0"):
        folder = ROOT / "outputs" / name / case / f"seed{seed}" / stage
        return [json.loads((folder / f"{file}.json").read_text(encoding="utf-8")) for file in ("metrics", "provenance")]

    case, seed = cpu[5].strip("`").split()[1:]
    (pretrained, _), (tuned, origin) = (run("night", stage, case, seed) for stage in ("pretrain", "finetune"))
    accuracy = f"{tuned['last_epoch_accuracy']:.2f} %"
    assert tuned["last_epoch_accuracy"] > 84.4
    first, second = pretrained["train_seconds"], tuned["train_seconds"]
    told = f"{first + second:,.0f} s of training ({first:,.0f} + {second:,.0f}) on a shared machine"
    assert cpu[1] == f"{told}, {accuracy}"
    assert origin["commit"].startswith(cpu[4])
    (pretrained, origin), (tuned, _) = (run("speedrun", stage) for stage in ("pretrain", "finetune"))
    assert tuned["last_epoch_accuracy"] > 84.4
    wall = pretrained["wall_seconds"] + tuned["wall_seconds"]
    assert gpu[1] == f"{wall:.0f} s in all, {tuned['last_epoch_accuracy']:.2f} %"
    assert origin["device"] in gpu[3]
    assert origin["commit"].startswith(gpu[4])
    tuned, origin = run("night", "finetune", *best[5].strip("`").split()[1:])
    assert best[1] == f"{tuned['last_epoch_accuracy']:.2f} %"
    assert origin["commit"].startswith(best[4])
    for row in (cpu, gpu, best):
        file, case, seed = row[5].strip("`").split()
        study = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
        assert row[2] == f"`{study['study']}`, {seed}"
        assert case in study["cases"]


def test_no_published_run_beats_the_records_on_two_cores():
    """A higher accuracy in a study for two CPU cores, or a shorter way to 84.4 %, belongs in the README's table."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^\| highest accuracy on two CPU cores \| ([\d.]+) %", readme, re.M)
    paths = [
        p
        for name in ("laptop", "night", "speedrun-cpu")
        for p in (ROOT / "outputs" / name).glob("*/seed*/finetune/metrics.json")
    ]
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    assert max(metrics["last_epoch_accuracy"] for metrics in found.values()) == pytest.approx(float(told), abs=0.005)
    (fastest,) = re.findall(r"^\| 84\.4 % from random weights, two CPU cores \| ([\d,]+) s", readme, re.M)
    times = []
    for path, tuned in found.items():
        before = path.parents[1] / "pretrain" / "metrics.json"
        if tuned["last_epoch_accuracy"] >= 84.4:
            first = json.loads(before.read_text(encoding="utf-8"))["train_seconds"] if before.exists() else 0.0
            times.append(first + tuned["train_seconds"])
    assert f"{min(times):,.0f}" == fastest
