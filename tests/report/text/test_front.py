"""The byline, the abstract and the introduction."""

from pathlib import Path

import fake_study
import pytest
from fake_study import read, read_again, set_everywhere, verdict_of

from mae_core.errors import ParameterError
from mae_core.report import tables
from mae_core.report.claims import claims
from mae_core.report.summary import Summary
from mae_core.report.text import discussion, front, method, words
from mae_core.study.parameters import ReportParameters
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_what_was_not_run_is_said_and_not_filled_in():
    summary = read(skip=("scratch", "grid-75"))
    told = verdict_of(summary)
    assert told["Pre-training beats training from scratch"] == "not run"
    assert told["Random 75 % beats grid-wise 75 %"] == "not run"
    columns = {column[0]: column[1:] for column in zip(*tables.main_rows(summary), strict=True)}
    assert set(columns["scratch"]) == set(columns["grid-75"]) == {"–"}
    assert tables.sampling_rows(summary)[4] == ["grid", "75", "–", "82.0", "84.0", "–"]
    text = front.abstract(summary)
    assert "reaches 84.00 % test accuracy after fine-tuning. We judge 17 claims" in text
    assert "Of the student's cases, grid 75 % and training from scratch have not run. There is one seed" in text


def test_the_abstract_names_the_students_cases_that_have_not_run():
    text = front.abstract(read(skip=("grid-75", "mask-tokens", "block-50")))
    named = "random 75 % + mask tokens, block 50 % and grid 75 % have not run. There is one seed"
    assert f"Of the student's cases, {named}" in text
    text = front.abstract(read(skip=("grid-75",)))  # the others have run now
    assert "Of the student's cases, grid 75 % has not run. There is one seed" in text
    assert "Of the student's cases" not in front.abstract(read())


def test_nothing_run_is_a_report_too():
    with pytest.raises(ParameterError, match=r"^outputs/nothing holds no results"):
        Summary.read(ReportParameters(study="nothing"))
    summary = Summary.read(ReportParameters(study="nothing", cases=list(fake_study.CASES), seeds=[0]))
    assert {claim.verdict for claim in claims(summary)} == {"not run"}
    assert front.byline(summary) == "Study *nothing*: nothing has run yet."
    assert front.abstract(summary) == "Nothing has run yet."
    assert method.model(summary) == "The default case has not been pre-trained."
    assert discussion.discussion(summary).startswith("There is nothing to discuss yet")
    for rows in (tables.mask_token_rows, tables.sampling_rows, tables.cost_rows, tables.recipe_rows):
        assert rows(summary)


def test_only_a_study_of_drawn_images_says_that_it_is_a_test(monkeypatch):
    summary = read()
    assert front.abstract(summary).startswith("**This report shows that the pipeline works, and nothing more:**")
    monkeypatch.setattr(front, "dataset", lambda summary: words.DATASETS["cifar10"])
    assert front.abstract(summary).startswith("A student's report")


def test_a_report_on_validation_images_says_so():
    assert "test accuracy after fine-tuning" in front.abstract(read())
    assert "We report the test accuracy of the last epoch" in method.finetuning(read())
    for stage in ("pretrain", "finetune"):
        set_everywhere(stage, holdout=5000)
    told = front.abstract(read_again())
    assert "where it says test images, it means 5,000 validation images, held out from the training images" in told
    assert "validation accuracy after fine-tuning" in told
    assert "We report the validation accuracy of the last epoch" in method.finetuning(read_again())
    assert ["holdout", "5000", "5000"] in tables.recipe_rows(read_again())


def test_the_text_takes_its_numbers_from_the_results():
    text = front.abstract(read())
    assert "84.00 % test accuracy after fine-tuning, against 69.98 % from scratch" in text
    assert "1 seed" in front.byline(read())
    assert "20 November 2026" in front.byline(read())
    assert "there are no intervals" in text
    discussed = discussion.discussion(read())
    assert "+14.02 points" in discussed
    assert "interval" not in discussed


def test_a_table_of_results_tells_which_seeds_are_planned():
    read(seeds=(0, 1))
    alone = Summary.read(ReportParameters(study="fake"))
    tables.write_results(ReportParameters(study="fake", cases=list(fake_study.CASES), seeds=[0, 1, 2]))
    listed = Summary.read(ReportParameters(study="fake"))
    assert front.interim(alone) == ""
    assert front.interim(listed) == "The verdicts are interim: 2 of 3 planned seeds have run. "
    assert listed.seeds == alone.seeds == [0, 1]


def test_verdicts_of_some_planned_seeds_are_interim():
    fake_study.write(seeds=(0, 1))
    for planned, told in (((0, 1, 2, 3), "interim: 2 of 4 planned seeds have run. "), ((0, 1), "")):
        summary = Summary.read(ReportParameters(study="fake", cases=[*fake_study.CASES], seeds=[*planned]))
        assert told in front.abstract(summary)
        assert ("interim" in front.abstract(summary)) == bool(told)
    told = "interim: 2 of 6 cases have not run with all 3 planned seeds yet. "
    skip = (("block-50", 1), ("block-50", 2), ("grid-75", 2))
    assert told in front.abstract(read(seeds=(0, 1, 2), skip=skip))
    summary = Summary.read(ReportParameters(study="fake", cases=[*fake_study.CASES], seeds=[0, 1, 2, 3]))
    assert "interim: at most 3 of 4 planned seeds have run. " in front.abstract(summary)


def test_the_last_run_may_be_of_either_stage():
    fake_study.write()
    path = Path("outputs/fake/block-50/seed0/pretrain/provenance.json")
    write_json(path, read_json(path) | {"finished": "2026-11-21T10:00:00+00:00"})
    assert "Last run: 21 November 2026" in front.byline(read_again())
