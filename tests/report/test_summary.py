"""The results of a study, as a report reads them."""

import json
from pathlib import Path

import fake_study
import pytest
from fake_study import read, read_again, set_everywhere

from mae_core.report.case import NOT_RUN
from mae_core.report.summary import Summary, planned_in, read_beside
from mae_core.report.text import words
from mae_core.study.parameters import ReportParameters

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_without_lists_a_report_shows_all_that_is_on_disk():
    fake_study.write(seeds=(0, 4))
    every = Summary.read(ReportParameters(study="fake"))
    assert set(every.cases) == set(fake_study.CASES)
    assert set(every.sweep) == set(fake_study.SWEEP)
    assert every.seeds == [0, 4]
    one = Summary.read(ReportParameters(study="fake", cases=["grid-75"]))
    assert (list(one.all_cases), one.seeds) == (["grid-75"], [0, 4])
    assert Summary.read(ReportParameters(study="fake", seeds=[4])).seeds == [4]


def test_a_study_of_additional_cases_alone_has_them_as_its_cases():
    fake_study.write(cases={"random-50": fake_study.SWEEP["random-50"]})
    set_everywhere("pretrain", dataset="folder", data_dir="birds")
    set_everywhere("finetune", dataset="folder", data_dir="birds")
    summary = read_again()
    assert (list(summary.cases), list(summary.sweep)) == (["random-50"], [])
    assert not summary.compared
    assert "(birds)" in words.dataset(summary)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("study,case,seed,accuracy\nfake,a,0,1.0\nfake,b,7,\n", [("a", 0), ("b", 7)]),
        ("study;case;seed;accuracy\nfake;a;0;1,0\n", []),  # as a spreadsheet saves it
        ("study,case,seed\nfake,a,none\n", []),
        ("\ufeffstudy,case,seed\nfake,a,3\n", [("a", 3)]),
        ("", []),
    ],
)
def test_a_table_in_another_form_tells_no_plan(content, found):
    Path("results.csv").write_text(content, encoding="utf-8")
    assert planned_in(Path("results.csv")) == found


def test_an_unfinished_seed_is_left_out():
    summary = read(seeds=(0, 1, 2), skip=(("scratch", 1),))
    scratch = summary.scratch
    assert sorted(scratch.values("accuracy")) == [0, 2]
    assert len(summary.find("random", 0.75).beats(scratch, "accuracy").values) == 2


def test_without_a_list_the_studys_file_says_which_cases_are_on_request():
    fake_study.write()
    file = Path("params/fake.yaml")
    file.parent.mkdir()
    study = {
        "study": "fake",
        "seeds": [0],
        "cases": {"random-75": {}},
        "sweep": {"block-50": {}},
        "lengths": {"grid-75": {}},
    }
    for content, expected in ((study, {"block-50", "grid-75"}), ({"study": "fake"}, {*fake_study.SWEEP})):
        file.write_text(json.dumps(content), encoding="utf-8")
        summary = Summary.read(ReportParameters(study="fake"))
        assert set(summary.sweep) == expected
        assert set(summary.all_cases) == {*fake_study.CASES, *fake_study.SWEEP}


def test_intervals_of_another_study_alone_are_explained_below_the_table():
    fake_study.write(study="other", seeds=(0, 1))
    fake_study.write()
    studies = [Summary.read(ReportParameters(study=name)) for name in ("fake", "other")]
    assert words.plus_minus(*studies).startswith("± is the half-width of the 95 % interval of the mean over the seeds")
    assert words.plus_minus(*studies[::-1]) == "± is explained in the [abstract](#abstract)."
    assert words.plus_minus(studies[0], studies[0]) == ""


def test_a_study_that_is_not_there_is_left_out():
    fake_study.write()
    assert read_beside(ReportParameters(study="fake", beside=["absent"])) == []
    Path("outputs/absent/random-75/seed0/finetune").mkdir(parents=True)  # it has begun, and has no results
    assert read_beside(ReportParameters(study="fake", beside=["absent"])) == []


@pytest.mark.parametrize(("epochs", "fits"), [(5, False), (6, True), (7, False)])
def test_compute_is_equal_within_five_per_cent(epochs, fits):
    longer = fake_study.SWEEP | {"random-75-longer": {"epochs": epochs}}  # block 50 % has 4 epochs of 1.43 times the FLOPs
    found = read(cases=fake_study.CASES | longer).equal_work()
    assert (found is NOT_RUN, found.name == "random-75-longer") == (not fits, fits)
