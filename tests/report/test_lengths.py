"""Other lengths of pre-training: found, compared and told."""

import fake_study
import numpy as np
import pytest
from fake_study import read

from mae_core.report import figures, tables
from mae_core.report.statistics import estimate
from mae_core.report.summary import Summary
from mae_core.report.text import findings
from mae_core.study.parameters import ReportParameters

pytestmark = pytest.mark.usefixtures("elsewhere")


LENGTHS = {
    f"{case}-{n}epochs": fake_study.CASES[case] | {"epochs": n}
    for n in (2, 8)
    for case in ("random-75", "block-50", "grid-75")
}


def lengthened(accuracy=(80, 78, 79, 85, 88, 84), seeds=(0, 1, 2), skip=()):
    """A study with two more lengths; accuracies of random 75 %, block 50 % and grid 75 % after 2 and after 8 epochs."""
    told = fake_study.ACCURACY | dict(zip(LENGTHS, accuracy, strict=True))
    every = fake_study.CASES | fake_study.SWEEP | LENGTHS
    losses = dict.fromkeys(LENGTHS, 0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_study, "LOSS", fake_study.LOSS | losses)
        fake_study.write(seeds=seeds, cases=every, accuracy=told, skip=skip)
    return Summary.read(
        ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=[*fake_study.SWEEP, *LENGTHS], seeds=list(seeds))
    )


def test_lengths_are_found_by_their_parameters_and_share_their_seeds():
    summary = lengthened(skip=(("block-50-8epochs", 1),))
    found = summary.lengths()
    assert {n: {label: case.name for label, case in row.items()} for n, row in found.items()} == {
        n: dict(zip(("random 75 %", "block 50 %", "grid 75 %"), names, strict=True))
        for n, names in (
            (2, [name for name in LENGTHS if "-2epochs" in name]), (4, ["random-75", "block-50", "grid-75"]),
            (8, [name for name in LENGTHS if "-8epochs" in name]),
        )
    }  # fmt: skip
    assert list(found) == [2, 4, 8]  # not 6: of that length there is only one kind of masks
    assert {tuple(case.values("accuracy")) for row in found.values() for case in row.values()} == {(0, 2)}


def test_lengths_are_shown_where_two_have_run():
    assert read(seeds=(0, 1)).lengths() == {}
    longer = [name for name in LENGTHS if "-8epochs" in name]
    assert list(lengthened(skip=longer).lengths()) == [2, 4]


def test_one_kind_of_masks_of_a_length_is_no_comparison():
    skip = [name for name in LENGTHS if name not in ("random-75-2epochs", "grid-75-8epochs", "random-75-8epochs")]
    found = lengthened(skip=skip).lengths()
    assert {n: list(row) for n, row in found.items()} == {
        4: ["random 75 %", "block 50 %", "grid 75 %"], 8: ["random 75 %", "grid 75 %"],
    }  # fmt: skip


def test_the_table_of_lengths_has_accuracies_and_paired_differences():
    summary = lengthened()
    rows = {row[0]: row[1:] for row in tables.length_rows(summary)}
    assert list(rows) == ["epochs", "2", "4", "8"]
    random, block = (summary.all_cases[f"{case}-8epochs"] for case in ("random-75", "block-50"))
    change = block.beats(random, "accuracy")
    assert rows["8"][:2] == [
        f"{e.mean:.2f} ± {e.half_width:.2f}" for case in (random, block) if (e := case.estimate("accuracy"))
    ]
    assert rows["8"][3] == f"+{change.mean:.2f} ± {change.half_width:.2f}"
    assert rows["2"][4].startswith("−1.0")


def test_the_text_says_whether_the_order_changes_with_the_length_and_by_how_much():
    summary = lengthened()
    text = findings.lengths(summary)
    assert "after 2 epochs, random 75 %, grid 75 %, block 50 %; after 4 epochs, block 50 %, random 75 %, grid 75 %" in text
    assert "The order of the means is not the same." in text
    values = {name: summary.all_cases[name].values("accuracy") for name in LENGTHS}
    ahead = [[values[f"block-50-{n}epochs"][k] - values[f"random-75-{n}epochs"][k] for k in (0, 1, 2)] for n in (2, 8)]
    by_seed = [after - before for before, after in zip(*ahead, strict=True)]
    change = estimate(by_seed)
    start = "From 2 to 8 epochs, the difference from random 75 % changes by"
    assert f"{start} +{change.mean:.2f} ± {change.half_width:.2f} points for block 50 % and by " in text
    assert "one seed" not in text


def test_only_kinds_that_ran_at_every_length_have_an_order():
    some = [name for name in LENGTHS if name not in ("random-75-2epochs", "grid-75-2epochs")]
    text = findings.lengths(lengthened(skip=some, accuracy=(84, 0, 82, 0, 0, 0)))
    assert "Best first: after 2 epochs, random 75 %, grid 75 %; after 4 epochs, random 75 %, grid 75 %. " in text
    assert "the same at every length" in text
    assert "block" not in text


def test_lengths_without_a_shared_seed_have_no_order():
    usual = [(name, seed) for name in ("random-75", "block-50", "grid-75") for seed in (0, 1)]
    summary = lengthened(skip=[*usual, *((name, 2) for name in LENGTHS)])
    assert summary.lengths() == {}
    assert findings.lengths(summary).startswith("No two kinds of masks have run at every length with the same seed")


def test_a_kind_that_lacks_a_shared_seed_is_left_out_at_that_length():
    summary = lengthened(
        skip=[("block-50-8epochs", seed) for seed in (0, 1)] + [("block-50-2epochs", seed) for seed in (0, 1, 2)]
    )
    assert {n: list(row) for n, row in summary.lengths().items()} == {
        2: ["random 75 %", "grid 75 %"], 4: ["random 75 %", "block 50 %", "grid 75 %"], 8: ["random 75 %", "grid 75 %"],
    }  # fmt: skip
    rows = {n: {k: c.estimate("accuracy") for k, c in row.items()} for n, row in summary.lengths().items()}
    assert figures.lengths(rows).axes
    assert tables.length_rows(summary)[3][2] == "–"


def test_an_order_that_stays_is_called_the_same_and_one_seed_chance():
    text = findings.lengths(lengthened(accuracy=(80, 81, 79, 85, 88, 84), seeds=(0,)))
    assert "The order of the means is the same at every length." in text
    assert text.endswith("With one seed, this may be chance.")
    assert "±" not in text


def test_every_kind_of_masks_is_a_line_with_its_intervals():
    summary = lengthened()
    rows = {n: {k: c.estimate("accuracy") for k, c in row.items()} for n, row in summary.lengths().items()}
    (axes,) = figures.lengths(rows).axes
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["random 75 %", "block 50 %", "grid 75 %"]
    for label, line in lines.items():
        assert line.get_ydata() == pytest.approx([rows[n][label].mean for n in (2, 4, 8)])
        assert np.abs(np.log(line.get_xdata() / np.array([2, 4, 8]))).max() < 0.03
    bars = [segment for bar in axes.collections for segment in bar.get_segments()]
    assert sorted(b[1, 1] - b[0, 1] for b in bars) == pytest.approx(
        sorted(2 * point.half_width for row in rows.values() for point in row.values())
    )
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "4", "8"]
