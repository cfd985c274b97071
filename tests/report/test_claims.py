"""Claims and their verdicts, also where a difference is near zero."""

from dataclasses import dataclass, field
from pathlib import Path

import fake_study
import pytest
from fake_study import read, read_again, verdict_of
from scipy import stats

from mae_core.report import published
from mae_core.report.case import Case
from mae_core.report.claims import MATTERS, Claim, claims, decide, flops_ratio, judge, matters, measured, throughout
from mae_core.report.statistics import Estimate, detectable, estimate, holm, p_value
from mae_core.report.summary import Summary
from mae_core.report.text import words
from mae_core.study.parameters import PretrainParameters
from mae_core.study.results import read_json, write_json


def around(mean, half_width=0.3, n=3):
    """Values of three seeds with this mean; the interval of their mean is a little wider than their scatter."""
    return estimate([mean - half_width / 2.484, mean, mean + half_width / 2.484])  # t(0.975, 2) / sqrt(3) = 2.484


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [
        (0.5, "supported"), (0.31, "supported"), (0.29, "undecided (3 seeds)"), (0.0, "undecided (3 seeds)"),
        (-0.29, "undecided (3 seeds)"), (-0.31, "contradicted"), (-0.5, "contradicted"), (1e-3, "undecided (3 seeds)"),
    ],
)  # fmt: skip
def test_the_side_of_zero_on_which_the_interval_lies_decides(mean, verdict):
    difference = around(mean)
    assert difference.half_width == pytest.approx(0.3, abs=1e-3)
    assert judge(difference) == verdict


def test_seeds_that_agree_exactly_decide_by_the_sign():
    assert judge(estimate([0.5, 0.5])) == "supported"
    assert judge(estimate([-0.5, -0.5])) == "contradicted"
    assert judge(estimate([0.0, 0.0])) == "undecided (2 seeds)"


@pytest.mark.parametrize(
    ("mean", "half_width", "verdict"),
    [
        (0.0, 0.49, "no difference that matters"), (0.0, 0.51, "undecided (3 seeds)"),
        (0.2, 0.29, "no difference that matters"), (0.2, 0.31, "undecided (3 seeds)"),
        (-0.2, 0.29, "no difference that matters"), (-0.2, 0.31, "undecided (3 seeds)"),
        (0.3, 0.19, "supported (smaller than matters)"), (0.3, 0.21, "supported"),
        (-0.3, 0.19, "contradicted (smaller than matters)"), (-0.3, 0.21, "contradicted"),
        (0.2, 0.21, "no difference that matters"), (0.2, 0.19, "supported (smaller than matters)"),
        (0.8, 0.1, "supported"), (-0.8, 0.1, "contradicted"),
    ],
)  # fmt: skip
def test_a_difference_of_accuracy_within_half_a_point_does_not_matter(mean, half_width, verdict):
    assert judge(around(mean, half_width), MATTERS) == verdict
    assert judge(around(mean, half_width)) == verdict.replace(" (smaller than matters)", "").replace(
        "no difference that matters", "undecided (3 seeds)"
    )


def test_an_interval_that_ends_at_the_bound_reaches_it():
    for sign, verdict in ((1, "supported"), (-1, "contradicted")):
        assert judge(Estimate((0.3, 0.5), sign * 0.4, 0.1), MATTERS) == verdict
        assert judge(Estimate((0.3, 0.5), sign * 0.4, 0.09), MATTERS) == f"{verdict} (smaller than matters)"
    assert judge(Estimate((-0.1, 0.1), 0.0, 0.5), MATTERS) == "undecided (2 seeds)"
    assert judge(estimate([0.1]), MATTERS) == "undecided (one seed: for it)"


@pytest.mark.parametrize("value", [3.0, 0.0, -3.0])
def test_accuracies_that_differ_equally_with_every_seed_decide_nothing(value):
    """Accuracies are counts: with few test images and seeds, equal differences are common."""
    assert judge(estimate([value, value]), MATTERS) == "undecided (the seeds do not differ)"


def test_no_difference_that_was_published_is_too_small_to_matter():
    for numbers in (published.STUDENT, published.PAPER):
        default = numbers["random", 0.75, False]
        assert min(abs(value - default) for value in numbers.values() if value != default) > MATTERS == 0.5


@pytest.mark.parametrize("quantity", ["accuracy", "best_accuracy", "linear", "knn"])
def test_only_accuracies_have_a_bound(quantity):
    assert matters(quantity) == MATTERS
    assert [matters(other) for other in ("loss", "psnr", "memory")] == [None] * 3


def test_a_claim_of_several_differences_has_the_largest_p_value_and_the_least_favourable_verdict():
    sure, open_, equal, little = around(5.0), around(0.1, 1.0), around(0.1), around(0.3, 0.1)
    against, barely = around(-5.0), around(-0.6)
    ps = {id(d): p_value(d) for d in (sure, open_, equal, little, against, barely)}
    assert ps[id(sure)] < ps[id(little)] < 0.05 < ps[id(open_)]
    for differences, decisive, verdict in (
        ((sure, little), little, "supported (smaller than matters)"),
        ((sure, open_, little), open_, "undecided (3 seeds)"),
        ((open_, equal, sure), equal, "no difference that matters"),
        ((around(7.0), sure), sure, "supported"),
    ):
        found, told, p = decide(differences, MATTERS)
        assert (found, told) == (decisive, verdict)
        assert p == max(p_value(d) for d in differences)
    assert decide((little, sure, barely, against), MATTERS) == (against, "contradicted", 4 * ps[id(against)])
    assert decide((sure, barely), MATTERS) == (barely, "contradicted", 2 * ps[id(barely)])
    assert decide((barely,), None) == (barely, "contradicted", ps[id(barely)])
    lone = estimate([-1.0])
    assert decide((sure, lone), MATTERS)[2] is None
    assert decide((against, lone), MATTERS) == (against, "contradicted", 2 * ps[id(against)])
    weak = around(-0.4)  # alone it contradicts a claim, but not as one of two comparisons
    assert p_value(weak) < 0.05 < 2 * p_value(weak)
    assert decide((weak,), MATTERS)[1] == "contradicted"
    assert decide((sure, weak), MATTERS) == (weak, "undecided (3 seeds)", 2 * p_value(weak))
    assert decide((around(-0.301), *[sure] * 40), None)[1:] == ("undecided (3 seeds)", 1.0)
    assert decide((sure, equal, weak), MATTERS) == (equal, "no difference that matters", 3 * p_value(weak))


def test_of_several_contradictions_the_surest_one_decides_and_is_shown():
    surest, lowest = estimate([-1.33, -1.01, -0.56, -0.86]), estimate([-1.9, -0.6, -0.9, -0.7])
    assert lowest.mean < surest.mean
    assert 3 * p_value(surest) < 0.05 < 3 * p_value(lowest)
    assert decide((around(5.0), lowest, surest), MATTERS) == (surest, "contradicted", 3 * p_value(surest))


@pytest.mark.parametrize(
    ("quantity", "values", "told"),
    [
        ("accuracy", [1.234], "+1.23 points"), ("accuracy", [-0.5], "−0.50 points"), ("loss", [0.01234], "+0.0123"),
        ("memory", [2.0**21], "+2 MiB"), ("psnr", [-1.5], "−1.50 dB"),
    ],
)  # fmt: skip
def test_a_difference_is_told_with_sign_and_unit(quantity, values, told):
    assert measured(estimate(values), quantity) == told


def test_an_interval_is_told_in_the_same_unit():
    assert measured(around(0.5), "accuracy") == "+0.50 ± 0.30 points"
    assert measured(estimate([value * 2**20 for value in (1.0, 2.0, 3.0)]), "memory") == "+2 ± 2 MiB"


@pytest.mark.parametrize(("value", "side"), [(0.4, "for"), (-0.4, "against"), (0.0, "neither for nor against")])
def test_one_seed_speaks_for_a_side_and_decides_nothing(value, side):
    assert judge(estimate([value])) == f"undecided (one seed: {side} it)"


# Claims on chosen numbers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told(Case):
    """A case whose files are given, not read: stage and name to seed to content."""

    files: dict = field(default_factory=dict)

    def read(self, stage, file):
        return self.files.get((stage, file), {})


def told(accuracy, masks=None, curves=None, epochs=4, flops=1000, device="cpu, 1 thread"):
    """A case of these accuracies by seed; its other quantities are multiples of them."""
    pretrained = {
        seed: {"test_loss": value / 1000, "test_psnr": value / 5, "peak_memory_bytes": value * 2**20,
               "flops_per_image": flops}
        for seed, value in accuracy.items()
    }  # fmt: skip
    finetuned = {seed: {"last_epoch_accuracy": value, "probes": {"linear": value / 2}} for seed, value in accuracy.items()}
    histories = {seed: {"test_accuracy": curve} for seed, curve in (curves or {s: [1.0] for s in accuracy}).items()}
    files = {("finetune", "metrics"): finetuned, ("finetune", "history"): histories}
    if masks is None:
        return Told("scratch", None, True, {}, files=files)
    run = PretrainParameters(epochs=epochs, **masks)
    computed = {seed: {"device": device, "precision": "float32"} for seed in accuracy}
    files |= {("pretrain", "metrics"): pretrained, ("pretrain", "provenance"): computed}
    return Told("case", run, False, {}, PretrainParameters(epochs=4), files=files)


MASKS = {
    "random 75": {}, "tokens": {"mask_tokens_in_encoder": True}, "block 50": {"mask_strategy": "block", "mask_ratio": 0.5},
    "block 75": {"mask_strategy": "block"}, "grid": {"mask_strategy": "grid"}, "scratch": None,
    "random 25": {"mask_ratio": 0.25}, "random 50": {"mask_ratio": 0.5}, "random 90": {"mask_ratio": 0.9},
}  # fmt: skip
ACCURACY = {
    "random 75": 50.0, "tokens": 41.0, "block 50": 63.0, "block 75": 46.0, "grid": 34.0, "scratch": 17.0, "longer": 55.0,
    "random 25": 32.0, "random 50": 45.0, "random 90": 39.0,
}  # fmt: skip


def study(**changes):
    """A study of two seeds that nearly agree in all but what is changed."""
    accuracy = {name: {0: value, 1: value + 1e-5 * place} for place, (name, value) in enumerate(ACCURACY.items())} | changes
    flops = {"block 50": 1500, "tokens": 2416}
    cases = {name: told(accuracy[name], masks, flops=flops.get(name, 1000)) for name, masks in MASKS.items()}
    return Summary("study", cases | {"longer": told(accuracy["longer"], {}, epochs=6)})


CLAIMS = {
    "Pre-training beats training from scratch": "+33.00 ± 0.00 points",
    "Pre-training is ahead after every epoch": "epoch 1: +0.00 ± 0.00 points",
    "Mask tokens in the encoder lower the accuracy": "+9.00 ± 0.00 points",
    "Mask tokens in the encoder cost more FLOPs (student's model: 2.4×; paper's: 3.3×)": "2.42×",
    "Skipping mask tokens saves memory": "−9 ± 0 MiB",
    "75 % masking can be learned: its frozen features beat a random encoder's (linear probe)": "+16.50 ± 0.00 points",
    "Block-wise 50 % beats random 75 %": "+13.00 ± 0.00 points",
    "Block-wise 50 % beats random 75 % at equal compute": "+8.00 ± 0.00 points",
    "Random 75 % beats block-wise 75 %": "+4.00 ± 0.00 points",
    "Random 75 % beats grid-wise 75 %": "+16.00 ± 0.00 points",
    "Grid-wise masking is the easier task: random's loss is higher": "+0.0160 ± 0.0000",
    "Grid-wise masking gives the worst features: every other masking's linear probe is higher":
        "block 75 %: +6.00 ± 0.00 points",
    "Block-wise masking is harder: its loss at 75 % is higher than random's": "−0.0040 ± 0.0000",
    "Block-wise reconstructions are less exact: random's PSNR at 75 % is higher": "+0.80 ± 0.00 dB",
    "A lower ratio is an easier task: block-wise loss at 75 % is above 50 %": "−0.0170 ± 0.0000",
    "75 % is the best ratio of random masking: it beats 25, 50 and 90 %": "random 50 %: +5.00 ± 0.00 points",
    "75 % is the best ratio for the linear probe": "random 50 %: +2.50 ± 0.00 points",
}  # fmt: skip


def test_every_claim_compares_the_cases_that_it_names():
    found = {claim.statement: claim for claim in claims(study())}
    assert {statement: claim.measured for statement, claim in found.items()} == CLAIMS
    sides = {"+": "supported", "2": "supported", "−": "contradicted", "e": "undecided (the seeds do not differ)"}
    for claim in found.values():
        assert claim.verdict == sides[claim.measured.removeprefix("block 75 %: ").removeprefix("random 50 %: ")[0]]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("moved", "verdict"), [((), "supported"), ((0,), "undecided (one seed"), ((0, 1), "undecided (not on")]
)
def test_memory_is_compared_on_one_machine_only(moved, verdict):
    fake_study.write(seeds=(0, 1))
    for seed in (0, 1):
        folder = Path(f"outputs/fake/mask-tokens/seed{seed}/pretrain")
        metrics = read_json(folder / "metrics.json")
        write_json(folder / "metrics.json", metrics | {"peak_memory_bytes": 2**32 + seed})
        if seed in moved:
            told = read_json(folder / "provenance.json")
            write_json(folder / "provenance.json", told | {"device": told["device"] + "s"})
    (claim,) = [claim for claim in claims(read_again()) if claim.statement == "Skipping mask tokens saves memory"]
    assert claim.verdict.startswith(verdict)


def test_without_a_shared_seed_no_machine_is_blamed():
    (claim,) = [c for c in claims(study(tokens={2: 41.0})) if c.statement == "Skipping mask tokens saves memory"]
    assert claim.verdict == "undecided (no shared seed)"


def test_the_cost_of_blocks_is_told_beside_random_masks_only():
    cases = {"block": told({0: 50.0}, MASKS["block 50"], flops=1500), "grid": told({0: 50.0}, MASKS["grid"])}
    assert words.cost_of_blocks(Summary("study", cases)) == ""
    cases["random"] = told({0: 50.0}, {})
    assert words.cost_of_blocks(Summary("study", cases)).startswith(
        "An epoch of block-wise 50 % costs 1.50 times the FLOPs"
    )


@pytest.mark.parametrize(
    ("changes", "measured", "verdict"),
    [
        ({}, "random 50 %: +5.00 ± 0.00 points", "supported"),
        ({"random 90": {0: 49.0, 1: 51.5}}, "random 90 %: −0.25 ± 15.88 points", "undecided (2 seeds)"),
        ({"random 90": {0: 30.0, 1: 60.0}, "random 50": {0: 51.0, 1: 51.00001}}, "random 50 %: −1.00", "contradicted"),
        ({"random 25": {0: 52.0, 1: 52.00001}, "random 50": {0: 51.0, 1: 51.00001}}, "random 25 %: −2.00", "contradicted"),
        ({"random 25": {}}, "–", "not run"),
        ({"random 75": {}}, "–", "not run"),
        ({"random 25": {2: 52.0}}, "–", "undecided (no shared seed)"),
        ({"random 25": {2: 52.0}, "random 50": {}}, "–", "not run"),
    ],
)
def test_of_several_comparisons_the_least_favourable_is_told(changes, measured, verdict):
    (claim,) = [claim for claim in claims(study(**changes)) if claim.statement.startswith("75 % is the best ratio of")]
    assert claim.measured.startswith(measured)
    assert claim.verdict == verdict


@pytest.mark.parametrize(
    ("first", "second", "measured", "verdict"),
    [
        (
            {0: [2.0, 3.0], 1: [2.00001, 3.00001]},
            {0: [1.0, 1.0], 1: [1.0, 1.0]},
            "epoch 1: +1.00 ± 0.00 points",
            "supported",
        ),
        (
            {0: [0.5, 3.0], 1: [0.50001, 3.00001]},
            {0: [0.2, 1.0], 1: [0.2, 1.0]},
            "epoch 1: +0.30 ± 0.00 points",
            "supported (smaller than matters)",
        ),
        (
            {0: [2.0, 0.5], 1: [2.00001, 0.50001]},
            {0: [1.0, 1.0], 1: [1.0, 1.0]},
            "epoch 2: −0.50 ± 0.00 points",
            "contradicted",
        ),
        (
            {0: [0.5, 2.0], 1: [0.50001, 2.00001]},
            {0: [1.0, 1.0], 1: [1.0, 1.0]},
            "epoch 1: −0.50 ± 0.00 points",
            "contradicted",
        ),
        (
            {0: [2.0, 1.5], 1: [2.0, 0.5]},
            {0: [1.0, 1.0], 1: [1.0, 1.0]},
            "epoch 2: +0.00 ± 6.35 points",
            "undecided (2 seeds)",
        ),
        (
            {0: [2.0, 1.0], 1: [2.00001, 1.00001]},
            {0: [1.0, 1.0], 1: [1.0, 1.0]},
            "epoch 2: +0.00 ± 0.00 points",
            "no difference that matters",
        ),
        ({0: [2.0, 3.0], 1: [0.0, 0.0]}, {0: [1.0, 1.0], 2: [9.0, 9.0]}, "epoch 1: +1.00 points", "undecided (one seed)"),
        ({1: [2.0, 3.0]}, {0: [1.0, 1.0]}, "–", "undecided (no shared seed)"),
    ],
)
def test_being_ahead_throughout_is_judged_epoch_by_epoch_over_the_seeds_of_both(first, second, measured, verdict):
    claim = throughout(told({}, {}, curves=first), told({}, curves=second))
    assert (claim.measured, claim.verdict) == (measured, verdict)


@pytest.mark.parametrize(
    ("flops", "measured", "verdict"),
    [(2416, "2.42×", "supported"), (1010, "1.01×", "supported"), (1000, "1.00×", "contradicted"),
     (900, "0.90×", "contradicted")],
)  # fmt: skip
def test_a_ratio_of_flops_above_one_supports_its_claim(flops, measured, verdict):
    claim = flops_ratio(told({0: 1.0}, {}, flops=flops), told({0: 1.0}, {}))
    assert (claim.measured, claim.verdict) == (measured, verdict)


@pytest.mark.parametrize(("first", "second"), [([[1.0, 2.0]] * 2, [[1.0]] * 2), ([[1.0], [1.0, 2.0]], [[1.0], [1.0, 2.0]])])
def test_histories_of_different_lengths_are_not_compared(first, second):
    claim = throughout(*(told({}, {}, curves=dict(enumerate(curves))) for curves in (first, second)))
    assert (claim.measured, claim.verdict) == ("–", "undecided (different numbers of epochs)")


def scattered():
    """A study of three seeds in which every difference has its own scatter."""
    shifts = {name: 0.1 * place for place, name in enumerate(ACCURACY)}
    return study(**{name: {k: ACCURACY[name] + shift * k * k for k in range(3)} for name, shift in shifts.items()})


def test_every_tested_claim_has_a_p_value_an_adjusted_one_and_what_could_be_found():
    found = {claim.statement: claim for claim in claims(scattered())}
    flops = found.pop("Mask tokens in the encoder cost more FLOPs (student's model: 2.4×; paper's: 3.3×)")
    assert (flops.p, flops.adjusted, flops.detectable, flops.survives) == (None, None, "–", False)
    never = found.pop("Pre-training is ahead after every epoch")
    assert (never.p, never.adjusted, never.detectable, never.survives) == (None, None, "–", False)
    assert [c.adjusted for c in found.values()] == pytest.approx(holm([c.p for c in found.values()]))
    first, grid = found["Pre-training beats training from scratch"], found["Random 75 % beats grid-wise 75 %"]
    loss = found["Grid-wise masking is the easier task: random's loss is higher"]
    for claim, one, other, digits, scale in ((first, 0, 5, 2, 1), (grid, 0, 4, 2, 1), (loss, 0, 4, 4, 1000)):
        names, k = list(ACCURACY), range(3)
        ours, theirs = ([(ACCURACY[names[n]] + 0.1 * n * i * i) / scale for i in k] for n in (one, other))
        assert claim.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
        least = detectable(estimate([a - b for a, b in zip(ours, theirs, strict=True)]))
        assert claim.detectable == f"{least:.{digits}f}"
    ratios = found["75 % is the best ratio of random masking: it beats 25, 50 and 90 %"]
    shifts = [0.1 * names.index(name) for name in ("random 25", "random 50", "random 90")]
    leasts = [detectable(estimate([-shift * i * i for i in k])) for shift in shifts]
    assert ratios.detectable == f"{max(leasts):.2f}"


def test_one_seed_has_no_p_value_and_no_part_in_the_correction():
    lone = claims(study(**{name: {0: value} for name, value in ACCURACY.items()}))
    assert {(claim.p, claim.adjusted, claim.detectable) for claim in lone} == {(None, None, "–")}
    some = claims(study(longer={0: 55.0}))
    tested = [claim for claim in some if claim.p is not None]
    assert len(tested) == len(claims(study())) - 3  # without FLOPs, every epoch, and the claim at equal work
    assert [claim.adjusted for claim in tested] == holm([claim.p for claim in tested])


@pytest.mark.parametrize(
    ("verdict", "p", "adjusted", "directional", "survives"),
    [
        ("supported", 0.01, 0.049, True, True), ("contradicted", 0.01, 0.049, True, True),
        ("supported (smaller than matters)", 0.01, 0.049, True, True), ("supported", 0.01, 0.05, True, False),
        ("supported", None, None, False, False), ("no difference that matters", 0.9, 0.9, False, False),
        ("undecided (3 seeds)", 0.06, 0.04, False, False),
    ],
)  # fmt: skip
def test_a_verdict_survives_below_five_per_cent(verdict, p, adjusted, directional, survives):
    claim = Claim("a", "both", "+1", verdict, "1", p, adjusted)
    assert (claim.directional, claim.survives) == (directional, survives)


# Of a study on disk ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("elsewhere")
def test_three_seeds_decide_what_the_numbers_show():
    told = verdict_of(read(seeds=(0, 1, 2)))
    assert len(told) == 17
    assert not [statement for statement in told if statement.startswith(("It ", "Its ", "They "))]  # each stands alone
    assert set(told.values()) == {"supported"}


@pytest.mark.usefixtures("elsewhere")
def test_a_claim_that_the_numbers_deny_is_contradicted():
    reversed_order = dict(zip(fake_study.ACCURACY, (70, 80, 60, 83, 82, 84, 65, 71, 60, 75), strict=True))
    told = verdict_of(read(seeds=(0, 1, 2), accuracy=reversed_order))
    assert told["Pre-training beats training from scratch"] == "contradicted"
    assert told["Pre-training is ahead after every epoch"] == "contradicted"
    assert told["Mask tokens in the encoder lower the accuracy"] == "contradicted"
    assert told["Block-wise 50 % beats random 75 %"] == "contradicted"
    assert told["Block-wise 50 % beats random 75 % at equal compute"] == "contradicted"
    one_is_higher = told["75 % is the best ratio of random masking: it beats 25, 50 and 90 %"]
    assert one_is_higher == "contradicted"


@pytest.mark.usefixtures("elsewhere")
def test_a_claim_about_several_cases_needs_them_all():
    ratios = "75 % is the best ratio of random masking: it beats 25, 50 and 90 %"
    assert verdict_of(read(seeds=(0, 1, 2), skip=("random-50",)))[ratios] == "not run"
    equal_to_one = fake_study.ACCURACY | {"random-90": 84}
    assert verdict_of(read(seeds=(0, 1, 2), accuracy=equal_to_one))[ratios] == "no difference that matters"
    (claim,) = [claim for claim in claims(read(seeds=(0, 1, 2))) if claim.statement == ratios]
    assert claim.measured.startswith("random 50 %: +1.00 ± ")  # 84 against 83
    mixed = fake_study.ACCURACY | {"random-25": 85, "random-50": 84.01}  # the one that is decided is told
    (claim,) = [claim for claim in claims(read(seeds=(0, 1, 2), accuracy=mixed)) if claim.statement == ratios]
    assert claim.measured.startswith("random 25 %: −1.00 ± ")
    assert claim.verdict == "contradicted"


@pytest.mark.usefixtures("elsewhere")
def test_equal_accuracies_are_called_so():
    equal = dict.fromkeys(fake_study.ACCURACY, 80)
    told = verdict_of(read(seeds=(0, 1, 2), accuracy=equal))
    assert told["Pre-training beats training from scratch"] == "no difference that matters"
    assert told["Pre-training is ahead after every epoch"] == "no difference that matters"


@pytest.mark.usefixtures("elsewhere")
def test_one_seed_decides_nothing_that_is_sampled():
    told = verdict_of(read())
    assert told["Pre-training beats training from scratch"] == "undecided (one seed: for it)"
    assert told["Pre-training is ahead after every epoch"] == "undecided (one seed)"
    assert told["Mask tokens in the encoder cost more FLOPs (student's model: 2.4×; paper's: 3.3×)"] == "supported"
    assert judge(estimate([-1.0])) == "undecided (one seed: against it)"
    assert judge(estimate([0.0])) == "undecided (one seed: neither for nor against it)"
