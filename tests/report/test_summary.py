"""Which runs a report reads, compares and leaves out, and what the claims make of them."""

import json
import shutil
from pathlib import Path

import fake_study
import pytest
from fake_study import read, read_again, set_everywhere, verdict_of

from mae_core.report.claims import claims, judge
from mae_core.report.statistics import estimate
from mae_core.report.summary import Summary, read_beside
from mae_core.report.text import findings, method, recipes, words
from mae_core.study.parameters import ReportParameters
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_three_seeds_decide_what_the_numbers_show():
    told = verdict_of(read(seeds=(0, 1, 2)))
    assert len(told) == 17
    assert not [statement for statement in told if statement.startswith(("It ", "Its ", "They "))]  # each stands alone
    assert set(told.values()) == {"supported"}


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


def test_equal_accuracies_are_called_so():
    equal = dict.fromkeys(fake_study.ACCURACY, 80)
    told = verdict_of(read(seeds=(0, 1, 2), accuracy=equal))
    assert told["Pre-training beats training from scratch"] == "no difference that matters"
    assert told["Pre-training is ahead after every epoch"] == "no difference that matters"


def test_one_seed_decides_nothing_that_is_sampled():
    told = verdict_of(read())
    assert told["Pre-training beats training from scratch"] == "undecided (one seed; points for it)"
    assert told["Pre-training is ahead after every epoch"] == "undecided (one seed)"
    assert told["Mask tokens in the encoder cost more FLOPs (student's model: 2.4×; paper's: 3.3×)"] == "supported"
    assert judge(estimate([-1.0])) == "undecided (one seed; points against it)"
    assert judge(estimate([0.0])) == "undecided (one seed; points neither way)"


def test_a_run_from_before_a_parameter_existed_had_its_default():
    read(seeds=(0, 1))
    old, new = (Path(f"outputs/fake/block-50/seed{seed}/finetune/parameters.json") for seed in (0, 1))
    values = json.loads(old.read_text(encoding="utf-8"))
    old.write_text(json.dumps({name: value for name, value in values.items() if name != "mixup"}), encoding="utf-8")
    assert not read_again().left_out
    new.write_text(json.dumps(json.loads(new.read_text(encoding="utf-8")) | {"mixup": 0.8}), encoding="utf-8")
    assert read_again().left_out == ("block-50/seed1/finetune: mixup is 0.8 there, and 0.0 elsewhere",)


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


def test_a_picture_that_the_chosen_seed_lacks_is_of_another():
    case = read(seeds=(0, 1, 2)).find("random", 0.75)
    for seed in (0, 1):
        (case.folders[seed] / "finetune" / "attention.png").unlink()
    chosen = Summary.read(ReportParameters(study="fake", seeds=[0])).find("random", 0.75)
    assert chosen.folder("finetune", "attention.png").parts[-2:] == ("seed2", "finetune")
    assert chosen.sources("finetune", "attention.png") == ["random-75/seed2/finetune"]
    assert list(chosen.values("accuracy")) == [0]
    parameters = read_json(case.folders[2] / "finetune" / "parameters.json")
    write_json(case.folders[2] / "finetune" / "parameters.json", parameters | {"base_lr": 0.5})
    chosen = Summary.read(ReportParameters(study="fake", seeds=[0]))
    assert chosen.find("random", 0.75).folder("finetune", "attention.png") is None  # of another recipe
    assert not chosen.left_out


@pytest.mark.parametrize(
    ("run", "name", "value"),
    [
        ("block-50/seed1/pretrain", "epochs", 3),
        ("grid-75/seed2/finetune", "base_lr", 0.1),
        ("random-90/seed0/pretrain", "width", 96),
    ],
)
def test_a_run_of_another_recipe_is_left_out_and_named(run, name, value):
    before = read(seeds=(0, 1, 2))
    assert not before.left_out
    path = Path("outputs/fake") / run / "parameters.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {name: value, "heads": 2}), encoding="utf-8")
    summary = Summary.read(
        ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP), seeds=[0, 1, 2])
    )
    (told,) = summary.left_out
    assert told.startswith(f"{run}: {name} is {value}")
    case, seed, _ = run.split("/")
    assert int(seed[-1]) not in summary.all_cases[case].values("accuracy")
    assert f"Left out because their recipe or images differ: {run}" in recipes.reproduce(summary)


def test_a_run_on_other_images_is_left_out_and_named():
    read(seeds=(0, 1))
    set_everywhere("pretrain", dataset="folder", data_dir="photos")
    set_everywhere("finetune", dataset="folder", data_dir="photos")
    assert not read_again().left_out
    for run in ("block-50/seed1/pretrain", "grid-75/seed0/finetune"):
        path = Path("outputs/fake") / run / "provenance.json"
        write_json(path, read_json(path) | {"data_md5": "0"})
    summary = read_again()
    assert summary.left_out == (
        "block-50/seed1/pretrain: its images in photos were not those of most runs",
        "grid-75/seed0/finetune: its images in photos were not those of most runs",
    )
    assert list(summary.find("block", 0.5).values("accuracy")) == [0]
    assert list(summary.find("grid", 0.75).values("accuracy")) == [1]
    path = Path("outputs/fake/grid-75/seed0/finetune/parameters.json")
    write_json(path, read_json(path) | {"data_dir": "others"})  # on purpose
    assert read_again().left_out == ("block-50/seed1/pretrain: its images in photos were not those of most runs",)
    set_everywhere("finetune", dataset="shapes", image_size=48)  # whose files differ from those of 32 pixels
    set_everywhere("pretrain", dataset="shapes")
    for path in Path("outputs/fake").glob("*/seed*/finetune/provenance.json"):
        write_json(path, read_json(path) | {"data_md5": "of 48 pixels"})
    assert read_again().left_out == ("block-50/seed1/pretrain: its shapes of 32 pixels were not those of most runs",)


def test_most_runs_say_which_images_are_usual():
    read(seeds=(0, 1))
    for stage in ("pretrain", "finetune"):
        set_everywhere(stage, dataset="folder", data_dir="photos")
    path = Path("outputs/fake/random-75/seed0/pretrain/provenance.json")  # the first run, from before a change
    write_json(path, read_json(path) | {"data_md5": "0"})
    assert [told.split(":")[0] for told in read_again().left_out] == ["random-75/seed0/pretrain"]


def test_an_additional_case_needs_the_recipe_of_one_case_only():
    read(seeds=(0, 1))
    for path in Path("outputs/fake").glob("random-75/seed*/pretrain/parameters.json"):  # the first case has its own
        write_json(path, read_json(path) | {"weight_decay": 0.1})
    summary = Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP)))
    assert not summary.left_out
    assert all(case.values("accuracy") for case in summary.sweep.values())
    for path in Path("outputs/fake").glob("random-90/seed1/pretrain/parameters.json"):
        write_json(path, read_json(path) | {"weight_decay": 0.2})
    summary = Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP)))
    assert summary.left_out == ("random-90/seed1/pretrain: weight_decay is 0.2 there, and 0.05 elsewhere",)
    for path in Path("outputs/fake").glob("random-25/seed*/finetune/parameters.json"):
        write_json(path, read_json(path) | {"base_lr": 0.5})
    shutil.rmtree("outputs/fake/block-50/seed0/finetune")  # a case that is not finished says nothing about fine-tuning
    shutil.rmtree("outputs/fake/block-50/seed1/finetune")
    summary = Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP)))
    assert not summary.sweep["random-25"].values("accuracy")


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


def test_the_model_of_a_default_case_with_mask_tokens_or_normalized_pixels_is_told():
    fake_study.write()
    for told in ("The encoder sees the visible patches only", "and predicts pixels."):
        assert told in method.model(read_again())
    for name in set(fake_study.CASES | fake_study.SWEEP) - {"mask-tokens"}:
        shutil.rmtree(f"outputs/fake/{name}")
    set_everywhere("pretrain", norm_pix=True)
    text = method.model(read_again())
    assert "The encoder sees all patches, with a mask token in place of each masked one" in text
    assert "and predicts normalized pixels." in text
    summary = read_again()
    for told in (findings.reconstruction_caption(summary.default), findings.features_caption(summary)):
        assert "the mean and the deviation of" in told
    set_everywhere("pretrain", norm_pix=False)
    summary = read_again()
    for told in (findings.reconstruction_caption(summary.default), findings.features_caption(summary)):
        assert "deviation" not in told
