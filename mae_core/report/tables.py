"""The study's tables as rows of text, the header first, from saved results; a dash stands for runs that are missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_core.report import over_images, published
from mae_core.report.case import DEFAULTS, NOT_RUN, QUANTITIES, Case, label_of, shared_seeds
from mae_core.report.claims import shown
from mae_core.report.statistics import Estimate, deviation, signed, signed_estimate
from mae_core.report.summary import LENGTHENED, Summary
from mae_core.study.parameters import OUTPUTS, ReportParameters
from mae_core.study.results import write_csv
from mae_core.study.study import STAGES

DASH = "–"


def number(value: Estimate | float | None, digits: int = 2, scale: float = 1.0) -> str:
    """A number, with its interval if there is one."""
    if value is None:
        return DASH
    if not isinstance(value, Estimate):
        return f"{value * scale:,.{digits}f}"
    half = "" if value.half_width is None else f" ± {value.half_width * scale:,.{digits}f}"
    return f"{value.mean * scale:,.{digits}f}{half}"


def cost(value: Estimate | None, digits: int = 0, scale: float = 1.0) -> str:
    """The median of a count, or of a time, speed or memory, which depends on the machine's load more than on the seed."""
    return number(value.median if value else None, digits, scale)


def minutes(value: Estimate | None) -> str:
    """A time in minutes, from seconds; with two digits below one minute."""
    return cost(value, 1 if value and value.median >= 60 else 2, 1 / 60)


def relative(case: Case, base: Case, quantity: str) -> str:
    """A quantity divided by that of another case."""
    ratio = case.ratio(base, quantity)
    return f"{ratio:.2f}×" if ratio is not None else DASH


def under(head: str, *names: str) -> list[str]:
    """The names of columns with a head over all of them; see :func:`~mae_core.report.display.show_table`."""
    return [f"{head}\n{name}" for name in names]


def beside_published(summary: Summary, head: str) -> list[str]:
    """The names of a study's column and of those with published numbers; of its own alone without a comparison."""
    return under(head, "here", "student", "paper") if summary.compared else [head]


def mask_token_rows(summary: Summary) -> list[list[str]]:
    """Mask tokens in the encoder (table 1a of the student's report): accuracies and FLOPs, ours and published ones."""
    base = summary.find("random", 0.75)
    rows = [["encoder", *beside_published(summary, "accuracy"), *beside_published(summary, "FLOPs")]]
    for name, tokens in (("with mask tokens", True), ("without", False)):
        case, key = summary.find("random", 0.75, tokens), ("random", 0.75, tokens)
        ours = [number(case.estimate("accuracy")), relative(case, base, "flops")]
        flops = [f"{x:g}×" if tokens else "1×" for x in (published.STUDENT_FLOPS_RATIO, published.PAPER_FLOPS_RATIO)]
        theirs = [str(published.STUDENT[key]), str(published.PAPER[key])]
        if summary.whole or case.pretrained:
            rows.append([name, ours[0], *theirs, ours[1], *flops] if summary.compared else [name, *ours])
    return rows


def sampling_rows(summary: Summary) -> list[list[str]]:
    """Mask sampling (table 1b of the student's report): accuracies, and FLOPs relative to random 75 %."""
    base = summary.find("random", 0.75)
    rows = [["masks", "ratio (%)", *beside_published(summary, "accuracy"), "FLOPs"]]
    for strategy, ratio in (("random", 0.75), ("block", 0.5), ("block", 0.75), ("grid", 0.75)):
        case, key = summary.find(strategy, ratio), (strategy, ratio, False)
        theirs = [str(published.STUDENT[key]), str(published.PAPER[key])] if summary.compared else []
        accuracy = number(case.estimate("accuracy"))
        if summary.whole or case.pretrained:
            rows.append([strategy, f"{100 * ratio:g}", accuracy, *theirs, relative(case, base, "flops")])
    return rows


def main_rows(summary: Summary) -> list[list[str]]:
    """The main table: one column per case, one row per quantity.

    Times, speed and memory are medians; minutes are those of all stages, images/s and memory those of pre-training. Rows
    without a number stay only where the report is whole.
    """
    base, cases = summary.default, summary.cases.values()

    def published_for(numbers: dict[tuple[str, float, bool], float]) -> list[str]:
        theirs = [numbers.get(case.masks) if case.masks else None for case in cases]
        return [DASH if value is None else str(value) for value in theirs]

    def ours(quantity: str) -> list[str]:
        return [number(case.estimate(quantity)) for case in cases]

    rows = [
        ["quantity", *(case.label for case in cases)],
        ["last epoch", *ours("accuracy")],
        ["student's", *published_for(published.STUDENT)],
        ["paper's", *published_for(published.PAPER)],
        ["top-5", *ours("top5")],
        ["best epoch", *ours("best_accuracy")],
        ["linear probe", *ours("linear")],
        ["k-NN", *ours("knn")],
        ["test loss", *(number(case.estimate("loss"), 4) for case in cases)],
        ["PSNR (dB)", *ours("psnr")],
        ["FLOPs", *(relative(case, base, "flops") for case in cases)],
        ["minutes", *(minutes(case.wall() if summary.fine_tuned else case.estimate("wall")) for case in cases)],
        ["images/s", *(cost(case.estimate("speed")) for case in cases)],
        ["memory (MiB)", *(cost(case.estimate("memory"), 0, 2**-20) for case in cases)],
    ]
    left_out = {
        *(() if summary.whole else ("student's", "paper's")),
        *(("test loss", "PSNR (dB)") if summary.fine_tuned else ()),
        *(() if any(case.values("top5") for case in cases) else ("top-5",)),
    }
    header, *rows = [row for row in rows if row[0] not in left_out]
    return [header, *(row for row in rows if summary.whole or set(row[1:]) != {DASH})]


FEATURES = {"linear": ("linear", 2), "k-NN": ("knn", 2), "loss": ("loss", 4), "PSNR (dB)": ("psnr", 2)}


def feature_rows(summary: Summary) -> list[list[str]]:
    """Every case before fine-tuning: probes (not in a study that only pre-trains), test loss, PSNR on masked pixels."""
    names = [name for name in FEATURES if summary.fine_tuned or name not in ("linear", "k-NN")]
    rows = [
        [case.label, *(number(case.estimate(quantity), digits) for quantity, digits in map(FEATURES.__getitem__, names))]
        for case in summary.cases.values()
    ]
    return [["case", *names], *(row for row in rows if summary.whole or set(row[1:]) != {DASH})]


def cost_rows(summary: Summary) -> list[list[str]]:
    """The cost of every case's two stages: FLOPs of pre-training; medians of minutes, images per second and memory."""
    base = summary.default
    stages = ("pre-training", "fine-tuning") if summary.fine_tuned else ("pre-training",)
    measured = [name for stage in stages for name in under(stage, "min", "img/s", "MiB")]
    header = ["case", *under("FLOPs", "millions", "relative"), *measured]
    rows = [
        [
            case.label,
            cost(case.estimate("flops"), 1, 1e-6),
            relative(case, base, "flops"),
            minutes(case.estimate("seconds")),
            cost(case.estimate("speed")),
            cost(case.estimate("memory"), 0, 2**-20),
            *([minutes(case.estimate("finetune_seconds"))] if summary.fine_tuned else []),
            *([cost(case.estimate("finetune_speed"))] if summary.fine_tuned else []),
            *([cost(case.estimate("finetune_memory"), 0, 2**-20)] if summary.fine_tuned else []),
        ]
        for case in summary.cases.values()
    ]
    return [header, *rows]


def ratio_rows(summary: Summary) -> list[list[str]]:
    """Random masking by ratio, over the seeds that all ratios finished: FLOPs relative to 75 %, test loss, accuracies."""
    base = summary.find("random", 0.75)
    rows = [
        [
            f"{100 * ratio:g}",
            relative(case, base, "flops"),
            number(case.estimate("loss"), 4),
            *(number(case.estimate(quantity)) for quantity in ("accuracy", "linear", "knn")),
        ]
        for ratio, case in summary.ratios().items()
    ]
    return [["ratio (%)", "FLOPs", "loss", "fine-tuned", "linear", "k-NN"], *rows]


def work_cases(summary: Summary) -> list[Case]:
    """Random 75 %, block 50 %, and random 75 % at the compute of block 50 %, with the seeds that all of them finished."""
    return shared_seeds([summary.find("random", 0.75), summary.find("block", 0.5), summary.equal_work()])


def work_rows(summary: Summary) -> list[list[str]]:
    """Block 50 % and random 75 % at equal epochs and at equal compute, over the seeds that all of them finished.

    Compute is FLOPs per image times epochs, relative to random 75 %.
    """
    base, *_ = cases = work_cases(summary)
    rows = [["masks", "epochs", "compute", "fine-tuned", "linear"]]
    for name, case in zip(("random 75 %", "block 50 %", "random 75 %"), cases, strict=True):
        if not summary.whole and not case.values("accuracy"):
            continue
        work, epochs = DASH, DASH
        if case.pretrained and case.work and base.work:
            work, epochs = f"{case.work / base.work:.2f}×", str(case.pretrained.epochs)
        rows.append([name, epochs, work, number(case.estimate("accuracy")), number(case.estimate("linear"))])
    return rows


def sensitivity_rows(summary: Summary) -> list[list[str]]:
    """Difference in accuracy from the default case with each seed, and its standard deviation over seeds."""
    base, rows = summary.default, [["case", *(f"seed {seed}" for seed in summary.seeds), "deviation"]]
    for case in summary.cases.values():
        if case is base:
            continue
        differences = case.differences(base, "accuracy")
        by_seed = [signed(differences[seed]) if seed in differences else DASH for seed in summary.seeds]
        rows.append([case.label, *by_seed, number(deviation(list(differences.values())))])
    return rows


def chance_rows(summary: Summary) -> list[list[str]]:
    """Accuracy and difference from the default case, each with half its intervals over seeds and over test images."""
    base, names = summary.default, ("mean", "± seeds", "± images")
    rows = [["case", *under("accuracy", *names), *under("difference", *names)]]
    for case in summary.cases.values():
        mean, change = case.estimate("accuracy"), None if case is base else case.beats(base, "accuracy")
        rows.append(
            [
                case.label,
                number(mean.mean if mean else None),
                number(mean.half_width if mean else None),
                number(over_images.of_accuracy(case)),
                signed(change.mean) if change else DASH,
                number(change.half_width if change else None),
                number(over_images.of_difference(case, base) if change else None),
            ]
        )
    return rows


def length_rows(summary: Summary) -> list[list[str]]:
    """Accuracy by length of pre-training, and differences from random masks, over the seeds that all lengths finished."""
    rows = [["epochs", *(label_of(*masks) for masks in LENGTHENED), "block − random", "grid − random"]]
    for epochs, cases in summary.lengths().items():
        found = [cases.get(label_of(*masks), NOT_RUN) for masks in LENGTHENED]
        changes = [case.beats(found[0], "accuracy") for case in found[1:]]
        rows.append([str(epochs), *(number(case.estimate("accuracy")) for case in found)])
        rows[-1] += [signed_estimate(change) if change else DASH for change in changes]
    return rows


def beside_rows(studies: Sequence[Summary]) -> list[list[str]]:
    """Accuracies of several studies side by side; one of them may be called ``paper``, as a published column is."""
    numbers = {"student": published.STUDENT, "paper": published.PAPER} if studies[0].compared else {}
    rows = [["case", *(study.name for study in studies), *numbers]]
    for key in [*published.STUDENT, None]:
        cases = [study.find(*key) if key else study.scratch for study in studies]
        means = [case.estimate("accuracy") for case in cases]
        theirs = [str(those[key]) if key else DASH for those in numbers.values()]
        rows.append(
            [label_of(*key) if key else "from scratch", *(number(mean) if mean else "not run" for mean in means), *theirs]
        )
    return rows


def claim_rows(summary: Summary) -> list[list[str]]:
    """Every claim with its verdict, the measured and the smallest detectable difference, p-values, and who claims it."""
    header = ["claim", "verdict", "measured", "detectable", "p", "Holm", "by"]
    rows = [
        [c.statement, c.verdict, c.measured, c.detectable, probability(c.p), probability(c.adjusted), c.source]
        for c in shown(summary)
    ]
    return [header, *rows]


def probability(value: float | None) -> str:
    """A p-value with three digits."""
    if value is None:
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def recipe_rows(summary: Summary) -> list[list[str]]:
    """Model and recipe of the default case, or else of training from scratch, in each stage, without parts that are off."""
    default = summary.default if summary.default.folder("finetune") or summary.default.pretrained else summary.scratch
    names: list[str] = [
        "dataset", "augment", "variant", "patch_size", "width", "depth", "heads", "decoder_width", "decoder_depth",
        "decoder_heads", "epochs", "warmup_epochs", "batch_size", "base_lr", "beta2", "weight_decay",
    ]  # fmt: skip
    first: dict[str, Any] = next(iter(default.read("pretrain", "parameters").values()), {})
    second: dict[str, Any] = next(iter(default.read("finetune", "parameters").values()), {})
    optional = (
        "pooling", "layer_decay", "drop_path", "label_smoothing", "mixup", "cutmix", "ema_decay", "train_images", "holdout",
    )  # fmt: skip
    off = DEFAULTS["finetune"]
    names += [name for name in optional if {first.get(name, off[name]), second.get(name, off[name])} != {off[name]}]
    second = {name: value for name, value in second.items() if not name.startswith("decoder")}
    stages = {"pre-training": first, "fine-tuning": second} if summary.fine_tuned else {"pre-training": first}
    rows = [[name, *(setting(values, name) for values in stages.values())] for name in names]
    return [["parameter", *stages], *rows]


def setting(values: dict[str, Any], name: str) -> str:
    """A parameter as the table of recipes shows it."""
    value = values.get(name, DASH)
    return "all" if name == "train_images" and value == 0 else str(value)


def provenance_rows(summary: Summary) -> list[list[str]]:
    """Every run: the time of its end, the commit of the code, the checksum of the weights."""
    rows = [["run", "finished", "commit", "weights"]]
    for case in summary.all_cases.values():
        for stage in STAGES:
            for seed, provenance in case.read(stage, "provenance").items():
                commit = (provenance["commit"] or "no commit")[:9] + (", changed" if provenance["clean"] is False else "")
                finished = provenance["finished"].replace("T", " ").removesuffix("+00:00")
                checksum = (provenance["weights_sha256"] or DASH)[:12]
                rows.append([f"{case.name}/seed{seed}/{stage}", finished, commit, checksum])
    return rows


def write_results(run: ReportParameters) -> Path:
    """Write ``outputs/<study>/results.csv``, see :func:`csv_rows`, and return its path."""
    path = OUTPUTS / run.study / "results.csv"
    write_csv(path, csv_rows(Summary.read(run)))
    return path


def csv_rows(summary: Summary) -> list[list[str]]:
    """A header, and one row per case and seed with all quantities, unrounded; empty if missing."""
    cases = summary.all_cases.values()
    quantities = [name for name in QUANTITIES if name != "top5" or any(case.values(name) for case in cases)]
    rows = [["study", "case", "seed", *quantities]]
    for case in cases:
        values = {quantity: case.values(quantity) for quantity in quantities}
        for seed in case.folders:
            cells = [repr(values[quantity][seed]) if seed in values[quantity] else "" for quantity in quantities]
            rows.append([summary.name, case.name, str(seed), *cells])
    return rows
