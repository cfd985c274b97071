import fake_study
import pytest

from mae_core import narrative, published, tables
from mae_core.parameters import PretrainParameters, ReportParameters
from mae_core.statistics import estimate
from mae_core.summary import Summary, claims, judge


def read(seeds=(0,), **how):
    fake_study.write(seeds=seeds, **how)
    return Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), seeds=list(seeds)))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def verdicts(summary):
    return {claim.statement: claim.verdict for claim in claims(summary)}


def test_three_seeds_decide_what_the_numbers_show():
    told = verdicts(read(seeds=(0, 1, 2)))
    assert len(told) == 11
    assert set(told.values()) == {"supported"}


def test_a_claim_that_the_numbers_deny_is_contradicted():
    reversed_order = dict(zip(fake_study.ACCURACY, (70, 80, 60, 83, 82, 84), strict=True))
    told = verdicts(read(seeds=(0, 1, 2), accuracy=reversed_order))
    assert told["Pre-training beats training from scratch"] == "contradicted"
    assert told["It does so after every epoch"] == "contradicted"
    assert told["Mask tokens in the encoder lower the accuracy"] == "contradicted"
    assert told["Block-wise 50 % beats random 75 %"] == "contradicted"


def test_differences_within_the_seeds_spread_are_undecided():
    equal = dict.fromkeys(fake_study.ACCURACY, 80)
    told = verdicts(read(seeds=(0, 1, 2), accuracy=equal))
    assert told["Pre-training beats training from scratch"] == "undecided (3 seeds)"
    assert told["It does so after every epoch"] == "undecided (3 seeds)"


def test_one_seed_decides_nothing_that_is_sampled():
    told = verdicts(read())
    assert told["Pre-training beats training from scratch"] == "undecided (one seed; points for it)"
    assert told["It does so after every epoch"] == "undecided (one seed)"
    assert told["They cost more FLOPs (student's model: 2.4×; paper's: 3.3×)"] == "supported"
    assert judge(estimate([-1.0])) == "undecided (one seed; points against it)"
    assert judge(estimate([0.0])) == "undecided (one seed; points neither way)"


def test_what_was_not_run_is_said_and_not_filled_in():
    summary = read(skip=("scratch", "grid-75"))
    told = verdicts(summary)
    assert told["Pre-training beats training from scratch"] == "not run"
    assert told["Random 75 % beats grid-wise 75 %"] == "not run"
    rows = {row[0]: row[1:] for row in tables.accuracy_rows(summary)}
    assert set(rows["scratch"]) == set(rows["grid-75"]) == {"–"}
    assert tables.sampling_rows(summary)[3] == ["grid", "75", "–", "82.0", "84.0", "–"]
    assert "has not run" in narrative.abstract(summary)


def test_nothing_run_is_a_report_too():
    summary = Summary.read(ReportParameters(study="nothing"))
    assert {claim.verdict for claim in claims(summary)} == {"not run"}
    texts = [f(summary) for f in (narrative.byline, narrative.abstract, narrative.model, narrative.discussion)]
    assert all("not" in text or "no" in text for text in texts)
    for rows in (tables.mask_token_rows, tables.sampling_rows, tables.cost_rows, tables.recipe_rows):
        assert rows(summary)


def test_an_unfinished_seed_is_left_out():
    summary = read(seeds=(0, 1, 2), skip=(("scratch", 1),))
    scratch = summary.find(None)
    assert sorted(scratch.values("accuracy")) == [0, 2]
    assert len(summary.find("random", 0.75).beats(scratch, "accuracy").values) == 2


def test_means_and_intervals_stand_in_the_tables():
    summary = read(seeds=(0, 1, 2))
    expected = estimate([84.0, 84.03, 83.98])
    assert tables.accuracy_rows(summary)[0][:2] == ["random 75 %", f"{expected.mean:.2f} ± {expected.interval:.2f}"]
    assert tables.mask_token_rows(summary)[0][1:] == [
        tables.accuracy_rows(summary)[1][1],
        "80.6",
        "84.2",
        "2.42×",
        "2.4×",
        "3.3×",
    ]
    assert tables.sampling_rows(summary)[1][-1] == "1.43×"


def test_published_numbers_belong_to_masks_and_not_to_names():
    assert (
        published.look_up(published.STUDENT, PretrainParameters(case="x", mask_strategy="block", mask_ratio=0.5))
        == 85.1
    )
    assert published.look_up(published.STUDENT, PretrainParameters(mask_ratio=0.6)) is None
    assert published.look_up(published.PAPER, None) is None


def test_the_text_takes_its_numbers_from_the_results():
    text = narrative.abstract(read())
    assert "84.00 % test accuracy after fine-tuning, against 69.98 % from scratch" in text
    assert "1 seed" in narrative.byline(read())
    assert "20 November 2026" in narrative.byline(read())
    discussion = narrative.discussion(read())
    assert "+14.02 points" in discussion
    assert "no interval can be given" in discussion


def test_the_csv_has_every_run_unrounded():
    summary = read(seeds=(0, 1))
    header, *rows = tables.csv_rows(summary)
    assert len(rows) == 12
    assert rows[1][:3] == ["fake", "random-75", "1"]
    assert float(rows[1][header.index("accuracy")]) == 84.03
    assert rows[-1][header.index("flops")] == ""
