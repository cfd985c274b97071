import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_study
import pytest

from mae_core.errors import ParameterError
from mae_core.report import narrative, published, tables
from mae_core.report.claims import claims, judge
from mae_core.report.statistics import estimate
from mae_core.report.summary import Summary
from mae_core.study.parameters import PretrainParameters, ReportParameters
from mae_core.study.results import read_json, write_json


def read(seeds=(0,), **how):
    fake_study.write(seeds=seeds, **how)
    return Summary.read(
        ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP), seeds=list(seeds))
    )


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def verdicts(summary):
    return {claim.statement: claim.verdict for claim in claims(summary)}


def test_three_seeds_decide_what_the_numbers_show():
    told = verdicts(read(seeds=(0, 1, 2)))
    assert len(told) == 17
    assert set(told.values()) == {"supported"}


def test_a_claim_that_the_numbers_deny_is_contradicted():
    reversed_order = dict(zip(fake_study.ACCURACY, (70, 80, 60, 83, 82, 84, 65, 71, 60, 75), strict=True))
    told = verdicts(read(seeds=(0, 1, 2), accuracy=reversed_order))
    assert told["Pre-training beats training from scratch"] == "contradicted"
    assert told["It does so after every epoch"] == "contradicted"
    assert told["Mask tokens in the encoder lower the accuracy"] == "contradicted"
    assert told["Block-wise 50 % beats random 75 %"] == "contradicted"
    assert told["It does so at equal work, against a longer random 75 %"] == "contradicted"
    one_is_higher = told["75 % is the best ratio of random masking: it beats 25, 50 and 90 %"]
    assert one_is_higher == "contradicted"


def test_a_claim_about_several_cases_needs_them_all():
    ratios = "75 % is the best ratio of random masking: it beats 25, 50 and 90 %"
    assert verdicts(read(seeds=(0, 1, 2), skip=("random-50",)))[ratios] == "not run"
    equal_to_one = fake_study.ACCURACY | {"random-90": 84}
    assert verdicts(read(seeds=(0, 1, 2), accuracy=equal_to_one))[ratios] == "no difference that matters"
    (claim,) = [claim for claim in claims(read(seeds=(0, 1, 2))) if claim.statement == ratios]
    assert claim.measured.startswith("random 50 %: +1.00 ± ")  # 84 against 83
    mixed = fake_study.ACCURACY | {"random-25": 85, "random-50": 84.01}  # the one that is decided is told
    (claim,) = [claim for claim in claims(read(seeds=(0, 1, 2), accuracy=mixed)) if claim.statement == ratios]
    assert claim.measured.startswith("random 25 %: −1.00 ± ")
    assert claim.verdict == "contradicted"


def test_equal_accuracies_are_called_so():
    equal = dict.fromkeys(fake_study.ACCURACY, 80)
    told = verdicts(read(seeds=(0, 1, 2), accuracy=equal))
    assert told["Pre-training beats training from scratch"] == "no difference that matters"
    assert told["It does so after every epoch"] == "no difference that matters"


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
    columns = {column[0]: column[1:] for column in zip(*tables.main_rows(summary), strict=True)}
    assert set(columns["scratch"]) == set(columns["grid-75"]) == {"–"}
    assert tables.sampling_rows(summary)[3] == ["grid", "75", "–", "82.0", "84.0", "–"]
    assert "has not run" in narrative.abstract(summary)


def test_nothing_run_is_a_report_too():
    with pytest.raises(ParameterError, match=r"^outputs/nothing holds no results"):
        Summary.read(ReportParameters(study="nothing"))
    summary = Summary.read(ReportParameters(study="nothing", cases=list(fake_study.CASES), seeds=[0]))
    assert {claim.verdict for claim in claims(summary)} == {"not run"}
    texts = [f(summary) for f in (narrative.byline, narrative.abstract, narrative.model, narrative.discussion)]
    assert all("not" in text or "no" in text for text in texts)
    for rows in (tables.mask_token_rows, tables.sampling_rows, tables.cost_rows, tables.recipe_rows):
        assert rows(summary)


def test_only_a_study_of_drawn_images_says_that_it_is_a_test(monkeypatch):
    summary = read()
    assert narrative.abstract(summary).startswith("**This report shows that the pipeline works, and nothing more:**")
    monkeypatch.setattr(narrative, "dataset", lambda summary: narrative.DATASETS["cifar10"])
    assert narrative.abstract(summary).startswith("A student's report")


def set_everywhere(stage, **values):
    for path in Path("outputs/fake").glob(f"*/seed*/{stage}/parameters.json"):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_the_report_names_the_parts_of_its_recipe():
    plain = narrative.finetuning(read())
    assert "a linear head reads its class token. All weights are trained. *From scratch* is the same recipe" in plain
    assert "the recipe has" not in plain.lower()
    assert "the class token" in narrative.attention_caption(read())
    assert [row[0] for row in tables.recipe_rows(read())][-1] == "weight_decay"
    set_everywhere("finetune", layer_decay=0.75)
    assert "The recipe has layer-wise decay of the learning rate (0.75; [Clark" in narrative.finetuning(read_again())
    parts = {"drop_path": 0.1, "label_smoothing": 0.2, "mixup": 0.8, "cutmix": 1.0, "ema_decay": 0.999, "pooling": "mean"}
    set_everywhere("finetune", **parts)
    told = narrative.finetuning(read_again())
    words = ("mean of its patch tokens", "decay of the learning rate (0.75;", "drop path (up to 0.1;", "smoothing (0.2;")
    assert all(
        word in told
        for word in (*words, "mixup (alpha 0.8;", "cutmix (alpha 1.0;", ")) and an exponential", "(decay 0.999).")
    )
    assert "the patch tokens" in narrative.attention_caption(read_again())
    assert "shows what the patch tokens of the fine-tuned encoder attend to." in narrative.attention(read_again())
    rows = {row[0]: row[1:] for row in tables.recipe_rows(read_again())}
    assert {name: rows[name] for name in parts} == {name: ["–", str(value)] for name, value in parts.items()}


def test_a_report_on_validation_images_says_so():
    assert "test accuracy after fine-tuning" in narrative.abstract(read())
    assert "We report the test accuracy of the last epoch" in narrative.finetuning(read())
    for stage in ("pretrain", "finetune"):
        set_everywhere(stage, holdout=5000)
    told = narrative.abstract(read_again())
    assert "where it says test images, it means 5,000 validation images, held out from the training images" in told
    assert "validation accuracy after fine-tuning" in told
    assert "We report the validation accuracy of the last epoch" in narrative.finetuning(read_again())
    assert ["holdout", "5000", "5000"] in tables.recipe_rows(read_again())


def test_a_run_from_before_a_parameter_existed_had_its_default():
    read(seeds=(0, 1))
    old, new = (Path(f"outputs/fake/block-50/seed{seed}/finetune/parameters.json") for seed in (0, 1))
    values = json.loads(old.read_text(encoding="utf-8"))
    old.write_text(json.dumps({name: value for name, value in values.items() if name != "mixup"}), encoding="utf-8")
    assert not read_again().left_out
    new.write_text(json.dumps(json.loads(new.read_text(encoding="utf-8")) | {"mixup": 0.8}), encoding="utf-8")
    assert read_again().left_out == ("block-50/seed1/finetune: mixup is 0.8 there, and 0.0 elsewhere",)


def read_again():
    """The study that is on disk."""
    return Summary.read(ReportParameters(study="fake"))


def test_without_lists_a_report_shows_all_that_is_on_disk():
    fake_study.write(seeds=(0, 4))
    every = Summary.read(ReportParameters(study="fake"))
    assert set(every.cases) == set(fake_study.CASES)
    assert set(every.sweep) == set(fake_study.SWEEP)
    assert every.seeds == [0, 4]
    one = Summary.read(ReportParameters(study="fake", cases=["grid-75"]))
    assert (list(one.all_cases), one.seeds) == (["grid-75"], [0, 4])
    assert Summary.read(ReportParameters(study="fake", seeds=[4])).seeds == [4]


def test_an_unfinished_seed_is_left_out():
    summary = read(seeds=(0, 1, 2), skip=(("scratch", 1),))
    scratch = summary.find(None)
    assert sorted(scratch.values("accuracy")) == [0, 2]
    assert len(summary.find("random", 0.75).beats(scratch, "accuracy").values) == 2


def test_means_and_intervals_stand_in_the_tables():
    summary = read(seeds=(0, 1, 2))
    expected = estimate([84.0, 84.03, 83.98])
    names, accuracies, *_ = tables.main_rows(summary)
    assert (names[1], accuracies[1]) == ("random 75 %", f"{expected.mean:.2f} ± {expected.interval:.2f}")
    rows = {name: cells for name, *cells in tables.main_rows(summary)}
    assert not [cell for name in ("minutes", "images/s", "memory (MiB)") for cell in rows[name] if "±" in cell]
    assert tables.mask_token_rows(summary)[0][1:] == [accuracies[2], "80.6", "84.2", "2.42×", "2.4×", "3.3×"]
    assert tables.sampling_rows(summary)[1][-1] == "1.43×"


def test_published_numbers_belong_to_masks_and_not_to_names():
    assert published.look_up(published.STUDENT, PretrainParameters(case="x", mask_strategy="block", mask_ratio=0.5)) == 85.1
    assert published.look_up(published.STUDENT, PretrainParameters(mask_ratio=0.6)) is None
    assert published.look_up(published.PAPER, None) is None


def test_the_text_takes_its_numbers_from_the_results():
    text = narrative.abstract(read())
    assert "84.00 % test accuracy after fine-tuning, against 69.98 % from scratch" in text
    assert "1 seed" in narrative.byline(read())
    assert "20 November 2026" in narrative.byline(read())
    discussion = narrative.discussion(read())
    assert "+14.02 points" in discussion
    assert "there are no intervals" in text
    assert "interval" not in discussion


def test_the_csv_has_every_run_unrounded():
    summary = read(seeds=(0, 1))
    header, *rows = tables.csv_rows(summary)
    assert len(rows) == 20
    assert rows[1][:3] == ["fake", "random-75", "1"]
    assert float(rows[1][header.index("accuracy")]) == 84.03
    assert next(row for row in rows if row[1] == "scratch")[header.index("flops")] == ""
    assert rows[-1][1] == "random-75-longer"


def test_the_ratios_stand_in_order_and_the_longer_run_apart():
    summary = read(seeds=(0, 1, 2))
    assert [row[0] for row in tables.ratio_rows(summary)] == ["25", "50", "75", "90"]
    assert [row[3][:2] for row in tables.ratio_rows(summary)] == ["81", "83", "84", "82"]
    assert [row[:3] for row in tables.work_rows(summary)] == [
        ["random 75 %", "4", "1.00×"], ["block 50 %", "4", "1.43×"], ["random 75 %", "6", "1.50×"],
    ]  # fmt: skip
    assert summary.equal_work().label == "random 75 %, 6 epochs"
    assert tables.work_rows(summary)[2][3].startswith("84.5")
    text = narrative.discussion(summary)
    assert (
        "random 75 % trained for 6 epochs, which is 1.05 times its compute, block 50 % changes the accuracy by +0.50 ±"
        in text
    )
    assert "with the highest result: fine-tuning at 75 % (84.00 %; lowest at 25 % with 81.00 %)" in text
    summary = replace(summary, sweep={name: case for name, case in summary.sweep.items() if name != "random-75-longer"})
    assert "Random 75 % at equal compute has not run" in narrative.discussion(summary)


def test_the_scatter_of_seeds_is_told():
    summary = read(seeds=(0, 1, 2))
    rows = {row[0]: row[1:] for row in tables.sensitivity_rows(summary)}
    assert rows["block 50 %"][:3] == ["+0.98", "+0.97", "+1.05"]
    assert rows["block 50 %"][3] == "0.04"
    assert "random 75 %" not in rows
    told = narrative.sensitivity(summary)
    assert "Each of the 3 seeds alone ranks the same case first, block 50 %." in told
    assert "same sign with every seed for all 5 cases" in told
    assert "There is one seed" in narrative.sensitivity(Summary.read(ReportParameters(study="fake", seeds=[0])))


def test_a_difference_whose_sign_depends_on_the_seed_is_named():
    close = fake_study.ACCURACY | {"grid-75": 84.0}
    told = narrative.sensitivity(read(seeds=(0, 1, 2), accuracy=close))
    assert "depends on the seed for grid 75 %" in told
    equal = dict.fromkeys(fake_study.ACCURACY, 84.0)
    told = narrative.sensitivity(read(seeds=(0, 1, 2), accuracy=equal))
    assert "The seeds disagree on the best case (seed 0: random 75 % + mask tokens; seed 1: " in told


def test_pictures_come_from_the_first_seed_that_has_them():
    case = read(seeds=(0, 1)).find("random", 0.75)
    (case.folders[0] / "finetune" / "attention.png").unlink()
    assert case.folder("finetune", "attention.png").parts[-2:] == ("seed1", "finetune")
    assert case.sources("finetune", "attention.png") == ["random-75/seed1/finetune"]
    assert case.folder("finetune").parts[-2:] == ("seed0", "finetune")
    caption = narrative.neighbours_caption(case.folder("finetune", "neighbours.png"))
    assert "Of the 16 neighbours, 9 have the class of their test image" in caption


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


def test_what_is_compared_has_the_same_seeds():
    skip = [(case, seed) for case in fake_study.SWEEP for seed in (1, 2)]
    summary = read(seeds=(0, 1, 2), skip=skip)
    assert "±" in tables.main_rows(summary)[1][1]
    assert not [
        cell for rows in (tables.ratio_rows, tables.work_rows) for row in rows(summary) for cell in row if "±" in cell
    ]
    assert "1 to 3 seeds that a case finished" in narrative.intervals(summary)
    assert narrative.plus_minus(summary) == "± is explained in the [abstract](#abstract)."
    assert not [row[1] for row in tables.cost_rows(summary) if "±" in row[1]]  # a count
    told = verdicts(summary)
    assert told["75 % is the best ratio of random masking: it beats 25, 50 and 90 %"].startswith("undecided (one seed")
    assert told["Pre-training beats training from scratch"] == "supported"


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
    assert f"Left out because their recipe differs: {run}" in narrative.reproduce(summary)


def test_minutes_are_of_both_stages():
    summary = read()
    assert [round(case.wall().mean) for case in summary.cases.values()] == [200] * 5 + [130]
    shutil.rmtree("outputs/fake/grid-75/seed0/pretrain")
    assert Summary.read(ReportParameters(study="fake")).cases["grid-75"].wall() is None


def test_minutes_below_one_have_two_digits():
    assert [tables.minutes(estimate([seconds])) for seconds in (4.2, 45, 90, 1608)] == ["0.07", "0.75", "1.5", "26.8"]
    assert tables.minutes(None) == "–"


def test_the_report_says_what_became_of_positions_at_another_resolution():
    summary = read()
    assert "positions were" not in narrative.model(summary)
    path = Path("outputs/fake/random-75/seed0/finetune/metrics.json")
    write_json(path, read_json(path) | {"positions": "resized (bicubic) from 8 × 8 to 16 × 16"})
    assert "Before fine-tuning, positions were resized (bicubic) from 8 × 8 to 16 × 16." in narrative.model(summary)
