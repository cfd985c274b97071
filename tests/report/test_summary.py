import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_study
import numpy as np
import pytest

from mae_core.errors import ParameterError
from mae_core.report import figures, tables
from mae_core.report.claims import claims, judge
from mae_core.report.statistics import estimate
from mae_core.report.summary import Summary, accuracy_series, read_beside
from mae_core.report.text import discussion, findings, front, method, recipes, verdicts, words
from mae_core.study.parameters import ReportParameters
from mae_core.study.results import read_json, write_json


def read(seeds=(0,), **how):
    fake_study.write(seeds=seeds, **how)
    return Summary.read(
        ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP), seeds=list(seeds))
    )


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a study has hundreds of files


def verdict_of(summary):
    return {claim.statement: claim.verdict for claim in claims(summary)}


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


def set_everywhere(stage, **values):
    for path in Path("outputs/fake").glob(f"*/seed*/{stage}/parameters.json"):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_the_report_names_the_parts_of_its_recipe():
    plain = method.finetuning(read())
    assert "a linear head reads its class token. All weights are trained. *From scratch* is the same recipe" in plain
    assert "the recipe has" not in plain.lower()
    assert "the class token" in findings.attention_caption(read())
    assert [row[0] for row in tables.recipe_rows(read())][-1] == "weight_decay"
    set_everywhere("finetune", layer_decay=0.75)
    assert "The recipe has layer-wise decay of the learning rate (0.75; [Clark" in method.finetuning(read_again())
    parts = {"drop_path": 0.1, "label_smoothing": 0.2, "mixup": 0.8, "cutmix": 1.0, "ema_decay": 0.999, "pooling": "mean"}
    set_everywhere("finetune", **parts)
    told = method.finetuning(read_again())
    words = ("mean of its patch tokens", "decay of the learning rate (0.75;", "drop path (up to 0.1;", "smoothing (0.2;")
    assert all(
        word in told
        for word in (*words, "mixup (alpha 0.8;", "cutmix (alpha 1.0;", ")) and an exponential", "(decay 0.999).")
    )
    assert "the patch tokens" in findings.attention_caption(read_again())
    assert "shows what the patch tokens of the fine-tuned encoder attend to." in findings.attention(read_again())
    rows = {row[0]: row[1:] for row in tables.recipe_rows(read_again())}
    assert {name: rows[name] for name in parts} == {name: ["–", str(value)] for name, value in parts.items()}


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


def test_means_and_intervals_stand_in_the_tables():
    summary = read(seeds=(0, 1, 2))
    expected = estimate([84.0, 84.03, 83.98])
    names, accuracies, *_ = tables.main_rows(summary)
    assert (names[1], accuracies[1]) == ("random 75 %", f"{expected.mean:.2f} ± {expected.half_width:.2f}")
    rows = {name: cells for name, *cells in tables.main_rows(summary)}
    assert not [cell for name in ("minutes", "images/s", "memory (MiB)") for cell in rows[name] if "±" in cell]
    assert tables.mask_token_rows(summary)[1][1:] == [accuracies[2], "80.6", "84.2", "2.42×", "2.4×", "3.3×"]
    assert tables.sampling_rows(summary)[2][-1] == "1.43×"


def test_published_numbers_belong_to_masks_and_not_to_names():
    cases = {"x": {"mask_strategy": "block", "mask_ratio": 0.5}, "block-50": {"mask_ratio": 0.6}, "scratch": None}
    summary = chosen(cases)
    rows = {row[0]: row[1:] for row in tables.main_rows(summary)}
    assert (rows["student's"], rows["paper's"]) == (["85.1", "–", "–"], ["83.9", "–", "–"])
    assert [row["student"] for row in accuracy_series(summary)] == [85.1, None, None]


def chosen(cases, **how):
    """A study of these cases, all with the same loss, and with accuracies one point apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_study, "LOSS", dict.fromkeys(cases, 0.05))
        fake_study.write(cases=cases, accuracy={name: 80 + place for place, name in enumerate(cases)}, **how)
    return Summary.read(ReportParameters(study="fake", cases=list(cases)))


def test_cases_with_the_same_masks_are_told_apart_by_their_names():
    cases = {"random-75": {}, "deep": {"depth": 6}, "plain": None, "smooth": None, "long": {"epochs": 6}}
    cases["longer"] = {"epochs": 6, "depth": 6}
    summary = chosen(cases, seeds=(0, 1))
    assert tables.main_rows(summary)[0][1:] == [
        "random 75 %", "random 75 % (deep)", "from scratch", "from scratch (smooth)", "random 75 %, 6 epochs",
        "random 75 %, 6 epochs (longer)",
    ]  # fmt: skip
    assert summary.default is summary.cases["random-75"]
    assert summary.scratch is summary.cases["plain"]
    assert "alone ranks random 75 %, 6 epochs (longer) first. " in verdicts.sensitivity(summary)
    assert "has the same sign with every seed for all 5 other cases" in verdicts.sensitivity(summary)


def test_a_study_of_normalized_pixels_is_compared_as_any_other():
    plain = read(seeds=(0, 1))
    before = [claim_of.verdict for claim_of in claims(plain)], tables.main_rows(plain), discussion.discussion(plain)
    set_everywhere("pretrain", norm_pix=True)
    summary = Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP)))
    assert before == ([c.verdict for c in claims(summary)], tables.main_rows(summary), discussion.discussion(summary))
    assert "predicts normalized pixels" in method.model(summary)
    assert summary.equal_work() is summary.sweep["random-75-longer"]


def test_a_case_of_another_target_than_usual_is_named_and_has_no_published_number():
    cases = {"random-75": {}, "other": {"norm_pix": True}}
    assert [case.label for case in chosen(cases).cases.values()] == ["random 75 %", "random 75 %, normalized pixels"]
    shutil.rmtree("outputs")
    summary = chosen({name: {"norm_pix": name == "random-75"} for name in cases})
    assert [case.label for case in summary.cases.values()] == ["random 75 %, normalized pixels", "random 75 %"]
    assert [row for row in tables.main_rows(summary) if row[0] == "student's"] == [["student's", "–", "84.4"]]


def test_the_text_takes_its_numbers_from_the_results():
    text = front.abstract(read())
    assert "84.00 % test accuracy after fine-tuning, against 69.98 % from scratch" in text
    assert "1 seed" in front.byline(read())
    assert "20 November 2026" in front.byline(read())
    assert "there are no intervals" in text
    discussed = discussion.discussion(read())
    assert "+14.02 points" in discussed
    assert "interval" not in discussed


def test_cases_that_are_equal_are_not_ranked():
    even = dict.fromkeys(fake_study.CASES, 80) | fake_study.ACCURACY
    even |= {"random-75": 84, "block-50": 84, "block-75": 70, "grid-75": 70, "mask-tokens": 70, "scratch": 60}
    read(seeds=(0, 1), accuracy=even)
    for path in Path("outputs/fake").glob("*/seed*/finetune/metrics.json"):
        told = read_json(path)
        write_json(path, told | {"last_epoch_accuracy": round(told["last_epoch_accuracy"])})
    text = verdicts.sensitivity(read_again())
    assert text.startswith("With each seed, random 75 % and block 50 % are equally good, and the best of 6 cases. ")
    assert text.endswith("With some seed, block 50 % has exactly the accuracy of random 75 %.")
    assert "sign" not in text
    path = Path("outputs/fake/block-50/seed1/finetune/metrics.json")
    write_json(path, read_json(path) | {"last_epoch_accuracy": 85.0})
    text = verdicts.sensitivity(read_again())
    assert "disagree on the best of these 6 cases (seed 0: random 75 % and block 50 %; seed 1: block 50 %)" in text
    path = Path("outputs/fake/block-50/seed0/finetune/metrics.json")
    write_json(path, read_json(path) | {"last_epoch_accuracy": 83.0})
    assert "The sign of the difference from random 75 % depends on the seed for block 50 %." in verdicts.sensitivity(
        read_again()
    )


def test_a_study_that_only_fine_tunes_has_a_model_a_recipe_and_a_gain():
    fake_study.write(seeds=(0, 1), cases={"theirs": None, "scratch": None}, accuracy={"theirs": 90, "scratch": 70})
    for path in Path("outputs/fake/theirs").glob("seed*/finetune/parameters.json"):
        write_json(path, read_json(path) | {"weights": "some/vit_small", "train_images": 500})
    summary = read_again()
    assert summary.default.name == "theirs"
    assert "The encoder has 2 pre-norm blocks of width 48 with 2 heads" in method.model(summary)
    assert "This study did not pre-train it: its weights are those of vit\\_small" in method.model(summary)
    text = front.abstract(summary)
    assert "no case of this study has been pre-trained; fine-tuning of the case *theirs* reaches 9" in text
    assert "% test accuracy, against 7" in text
    assert "It uses the labels of 500 training images." in method.finetuning(summary)
    assert {row[0]: row[1:] for row in tables.recipe_rows(summary)}["train_images"] == ["–", "500"]
    assert verdict_of(summary)["Pre-training beats training from scratch"] == "supported"
    assert "pre-training" not in findings.curves(summary)
    assert findings.curves_alt(summary)[0] == "No pre-training ran here."
    assert "None" not in method.model(summary)
    assert findings.curves_caption(summary).startswith("Left: no pre-training ran here. Middle and right: ")
    for path in Path("outputs/fake").glob("*/seed*/finetune/*.json"):
        own = {"dataset": "folder", "data_dir": "photos"} if path.stem == "parameters" else {"n_train": 90, "n_test": 30}
        write_json(path, read_json(path) | own) if path.stem in ("parameters", "metrics") else None
    summary = read_again()
    assert front.abstract(summary).startswith("We fine-tune an encoder that was pre-trained elsewhere")
    assert method.model(summary).startswith("**Data.** 90 training and 30 test images of 32×32 pixels; 10 classes: ")
    assert "It uses the labels of 90 training images." in method.finetuning(summary)  # 500 are not there
    for path in Path("outputs/fake/theirs").glob("seed*/finetune/parameters.json"):
        told = read_json(path)
        write_json(path, told | {"weights": f"outputs/fake/theirs/seed{told['seed']}/pretrain/weights.safetensors"})
    summary = read_again()
    assert "The results of its pre-training are not there." in method.model(summary)
    assert "elsewhere" not in front.abstract(summary) + findings.curves_caption(summary)
    shutil.rmtree("outputs/fake/theirs")
    rows = {row[0]: row[1:] for row in tables.recipe_rows(read_again())}
    assert (rows["width"], "train_images" in rows) == (["–", "48"], False)


def test_the_number_of_training_images_is_told_where_it_is_limited():
    read()
    set_everywhere("finetune", train_images=1000)
    assert ["train_images", "all", "1000"] in tables.recipe_rows(read_again())


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
    assert [row[0] for row in tables.ratio_rows(summary)[1:]] == ["25", "50", "75", "90"]
    assert [row[3][:2] for row in tables.ratio_rows(summary)[1:]] == ["81", "83", "84", "82"]
    assert [row[:3] for row in tables.work_rows(summary)[1:]] == [
        ["random 75 %", "4", "1.00×"], ["block 50 %", "4", "1.43×"], ["random 75 %", "6", "1.50×"],
    ]  # fmt: skip
    assert summary.equal_work().label == "random 75 %, 6 epochs"
    assert tables.work_rows(summary)[3][3].startswith("84.5")
    text = discussion.discussion(summary)
    assert (
        "Random 75 % trained for 6 epochs uses 1.05 times the compute of block 50 %. Compared with it, block 50 %" in text
    )
    assert "changes the accuracy by +0.50 ±" in text
    assert "share (seeds 0, 1 and 2), fine-tuning is best at 75 % (84.00 %) and worst at 25 % (81.00 %); the linear" in text
    assert "Verdict on the claim that 75 % is the best ratio: supported; for the linear probe: " in text
    summary = replace(summary, sweep={name: case for name, case in summary.sweep.items() if name != "random-75-longer"})
    assert "Random 75 % at equal compute has not run" in discussion.discussion(summary)


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


def test_the_scatter_of_seeds_is_told():
    summary = read(seeds=(0, 1, 2))
    rows = {row[0]: row[1:] for row in tables.sensitivity_rows(summary)}
    assert rows["block 50 %"][:3] == ["+0.98", "+0.97", "+1.05"]
    assert rows["block 50 %"][3] == "0.04"
    assert "random 75 %" not in rows
    assert "compare cases by the seeds that they share" in front.introduction(summary)
    told = verdicts.sensitivity(summary)
    assert "Of these 6 cases, each of the 3 seeds alone ranks block 50 % first." in told
    assert "same sign with every seed for all 5 other cases" in told
    assert "There is one seed" in verdicts.sensitivity(Summary.read(ReportParameters(study="fake", seeds=[0])))


def test_a_difference_whose_sign_depends_on_the_seed_is_named():
    close = fake_study.ACCURACY | {"grid-75": 84.0}
    told = verdicts.sensitivity(read(seeds=(0, 1, 2), accuracy=close))
    assert "depends on the seed for grid 75 %" in told
    equal = dict.fromkeys(fake_study.ACCURACY, 84.0)
    told = verdicts.sensitivity(read(seeds=(0, 1, 2), accuracy=equal))
    assert "The seeds disagree on the best of these 6 cases (seed 0: grid 75 %; seed 1: " in told


def test_pictures_come_from_the_first_seed_that_has_them():
    case = read(seeds=(0, 1)).find("random", 0.75)
    (case.folders[0] / "finetune" / "attention.png").unlink()
    assert case.folder("finetune", "attention.png").parts[-2:] == ("seed1", "finetune")
    assert case.sources("finetune", "attention.png") == ["random-75/seed1/finetune"]
    assert case.folder("finetune").parts[-2:] == ("seed0", "finetune")
    caption = findings.neighbours_caption(case.folder("finetune", "neighbours.png"))
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
    assert "over the 3 seeds that a case finished (Student's t; a case with one seed has none)" in words.intervals(summary)
    assert words.plus_minus(summary) == "± is explained in the [abstract](#abstract)."
    assert not [row[1] for row in tables.cost_rows(summary) if "±" in row[1]]  # a count
    told = verdict_of(summary)
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
    assert "positions were" not in method.model(summary)
    path = Path("outputs/fake/random-75/seed0/finetune/metrics.json")
    write_json(path, read_json(path) | {"positions": "resized (bicubic) from 8 × 8 to 16 × 16"})
    assert "Before fine-tuning, positions were resized (bicubic) from 8 × 8 to 16 × 16." in method.model(summary)


# Corrected verdicts -------------------------------------------------------------------------------------------------


def test_the_report_states_its_rule_and_what_is_left_of_the_verdicts():
    assert "lies within ± 0.5 points of accuracy" in verdicts.rule(read())
    summary = read(seeds=(0, 1, 2))
    found = [claim for claim in claims(summary) if claim.p is not None]
    lost = [claim.statement for claim in found if claim.directional and not claim.survives]
    decided = sum(claim.directional for claim in found)
    text = verdicts.correction(summary)
    assert f"{decided} of the {len(found)} claims with a p-value are supported or contradicted" in text
    assert f"Holm's correction for all {len(found)}, {decided - len(lost)} of these verdicts survive" in text
    assert text.count("“") == len(lost)
    kept = f"{decided} rest on a statistical test, and {decided - len(lost)} of these survive a correction"
    assert f"Of the supported or contradicted ones, {kept} for the number of claims." in front.abstract(summary)
    assert "The verdicts are interim" not in front.abstract(summary)


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


def test_cases_on_different_machines_are_told():
    fake_study.write(seeds=(0, 1))
    assert findings.several_machines(read_again()) == ""
    path = Path("outputs/fake/block-50/seed1/pretrain/provenance.json")
    write_json(path, read_json(path) | {"device": "Old CPU, 2 threads"})
    summary = read_again()
    text = findings.several_machines(summary)
    assert text.startswith("Times, speeds and memory come from different machines: ")
    assert "A processor and Old CPU, 2 threads (block 50 %)" in text
    assert text.count("; ") == 1
    assert text in findings.main_notes(summary)
    for path in Path("outputs/fake").glob("*/seed1/*/provenance.json"):
        write_json(path, read_json(path) | {"device": "Old CPU, 2 threads"})
    told = "come from several machines, on which every case ran: A processor and Old CPU, 2 threads. "
    assert findings.several_machines(read_again()).endswith(told)


def test_a_verdict_that_the_correction_takes_back_is_named():
    summary = read(seeds=(0, 1, 2), accuracy=fake_study.ACCURACY | {"grid-75": 83.85, "mask-tokens": 83.85})
    claim = next(claim for claim in claims(summary) if claim.statement == "Random 75 % beats grid-wise 75 %")
    assert (claim.verdict, claim.survives) == ("supported (smaller than matters)", False)
    assert "“Random 75 % beats grid-wise 75 %”" in verdicts.correction(summary)


def test_one_seed_is_told_that_nothing_can_be_corrected():
    assert verdicts.correction(read()).startswith("There is one seed, so we can give no p-value, no correction")
    assert "After a correction" not in front.abstract(read())
    assert {cell for row in tables.claim_rows(read())[1:] for cell in row[3:6]} == {"–"}


@pytest.mark.parametrize(
    ("p", "told"), [(None, "–"), (0.00099, "<0.001"), (0.001, "0.001"), (0.04949, "0.049"), (1.0, "1.000")]
)
def test_a_p_value_has_three_digits(p, told):
    assert tables.probability(p) == told


# Lengths of pre-training --------------------------------------------------------------------------------------------

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
    assert f"From 2 to 8 epochs, the difference from random 75 % changes: of block 50 % by +{change.mean:.2f} ± " in text
    assert f"{change.half_width:.2f} points, of grid 75 % by " in text
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


def test_the_last_run_may_be_of_either_stage():
    fake_study.write()
    path = Path("outputs/fake/block-50/seed0/pretrain/provenance.json")
    write_json(path, read_json(path) | {"finished": "2026-11-21T10:00:00+00:00"})
    assert "Last run: 21 November 2026" in front.byline(read_again())


def test_the_discussion_finds_its_verdicts_wherever_the_claims_stand(monkeypatch):
    accuracy = fake_study.ACCURACY | {"mask-tokens": 90}
    summary = read(seeds=(0, 1, 2), accuracy=accuracy)
    text = discussion.discussion(summary)
    assert "it helps: supported; that it helps after every epoch of fine-tuning: supported." in text
    assert "Verdict on the claim that they lower the accuracy: contradicted." in text
    monkeypatch.setattr(discussion, "claims", lambda summary: claims(summary)[::-1])
    assert discussion.discussion(summary) == text


def test_other_machines_than_the_last_are_told():
    fake_study.write(seeds=(0, 1))
    assert "Trainings by machine" not in recipes.reproduce(read_again())
    for stage in ("pretrain", "finetune"):
        path = Path(f"outputs/fake/block-50/seed1/{stage}/provenance.json")
        write_json(path, read_json(path) | {"device": "Old CPU, 2 threads", "precision": "float32"})
    summary = read_again()
    runs = len(tables.provenance_rows(summary)) - 1  # without the header
    device, precision = (
        summary.cases["random-75"].read("pretrain", "provenance")[0][name] for name in ("device", "precision")
    )
    told = {"2 Old CPU (float32)", f"{runs - 2} {device.split(',')[0]} ({precision})"}
    text = recipes.reproduce(summary)
    assert set(text.split("precision of matrix products: ")[1].split(". MD5")[0].split(", ")) == told
    write_json(path, read_json(path) | {"machines": ["Old CPU, 2 threads", "Older CPU, 1 thread"]})
    assert "1 training went on elsewhere after an interruption" in recipes.reproduce(read_again())


def test_cases_of_one_seed_in_different_precisions_are_told():
    fake_study.write(seeds=(0, 1, 2, 3))
    assert verdicts.unlike(read_again()) == ""
    for case in ("random-50", "random-25"):
        for seed in (1, 2):
            for stage in ("pretrain", "finetune"):
                path = Path(f"outputs/fake/{case}/seed{seed}/{stage}/provenance.json")
                write_json(path, read_json(path) | {"precision": "float64"})
    for path in Path("outputs/fake").glob("*/seed3/*/provenance.json"):  # a whole seed in another precision is no trouble
        write_json(path, read_json(path) | {"precision": "float64"})
    (usual,) = {told["precision"] for told in read_again().cases["random-75"].read("finetune", "provenance").values()} - {
        "float64"
    }
    text = verdicts.unlike(read_again())
    those = "random 25 % and random 50 % in float64"
    assert f": training of {those}, of the others in {usual} (seeds 1 and 2). " in text
    for path in Path("outputs/fake").glob("random-50/seed2/pretrain/provenance.json"):
        write_json(path, read_json(path) | {"precision": usual})
    text = verdicts.unlike(read_again())
    one = "random 25 % in float64, of the others in"
    assert (
        f": pre-training of {those}, of the others in {usual} (seed 1); pre-training of {one} {usual} (seed 2); fine"
        in text
    )


def test_pre_training_and_fine_tuning_in_different_precisions_are_no_difference_of_cases():
    fake_study.write(seeds=(0,))
    for path in Path("outputs/fake").glob("*/seed0/finetune/provenance.json"):
        write_json(path, read_json(path) | {"precision": "float64"})
    assert verdicts.unlike(read_again()) == ""


def test_a_case_of_another_recipe_is_told_beside_the_verdicts():
    fake_study.write(seeds=(0, 1))
    assert verdicts.unlike(read_again()) == ""
    assert "from scratch with the same recipe" in front.abstract(read_again())
    for seed in (0, 1):
        path = Path(f"outputs/fake/scratch/seed{seed}/finetune/parameters.json")
        write_json(path, read_json(path) | {"base_lr": 0.5})
    summary = read_again()
    assert not summary.left_out
    assert "more than their masks: from scratch, fine-tuning (base_lr is 0.5 there, and " in verdicts.unlike(summary)
    assert "same recipe" not in front.abstract(summary) + method.finetuning(summary)


# Other studies ------------------------------------------------------------------------------------------------------


def beside(**how):
    fake_study.write(seeds=(0, 1, 2))
    fake_study.write(study="other", **how)
    run = ReportParameters(study="fake", beside=["other", "absent"])
    return [Summary.read(run), *read_beside(run)]


def test_studies_stand_side_by_side_as_far_as_they_have_run():
    studies = beside(seeds=(0, 1), skip=("grid-75", "block-75", "mask-tokens", *fake_study.SWEEP))
    assert [study.name for study in studies] == ["fake", "other"]
    rows = {row[0]: row[1:] for row in tables.beside_rows(studies)}
    assert list(rows) == [
        "case",
        "random 75 %",
        "random 75 % + mask tokens",
        "block 50 %",
        "block 75 %",
        "grid 75 %",
        "from scratch",
    ]
    ours, theirs = (study.find("random", 0.75).estimate("accuracy") for study in studies)
    assert rows["random 75 %"] == [*(f"{e.mean:.2f} ± {e.half_width:.2f}" for e in (ours, theirs)), "84.4", "84.9"]
    assert rows["grid 75 %"][1:] == ["not run", "82.0", "84.0"]
    assert rows["from scratch"][2:] == ["–", "–"]
    assert rows["from scratch"][1].startswith("69.9")


def test_the_orders_of_the_masks_are_told_side_by_side():
    skip = ("grid-75", "mask-tokens", *fake_study.SWEEP)
    text = discussion.orders(beside(skip=skip, accuracy=fake_study.ACCURACY | {"block-75": 90}))
    assert "fake: block 50 %, random 75 %, block 75 %, grid 75 %; other: block 75 %, block 50 %, random 75 %; " in text
    assert "the student: block 50 %, random 75 %, block 75 %, grid 75 %; " in text
    assert text.endswith("the paper: random 75 %, grid 75 %, block 50 %, block 75 %.")
    assert text.startswith("The same cases in other studies, each with its own model and length of training. ")


def test_an_order_needs_two_kinds_of_masks_with_the_same_seed():
    skip = ("grid-75", "mask-tokens", "block-75", *fake_study.SWEEP)
    assert "other: fewer than two have run with the same seeds;" in discussion.orders(beside(skip=(*skip, "block-50")))
    apart = beside(seeds=(0, 1), skip=(*skip, ("block-50", 0), ("random-75", 1)))
    assert "other: fewer than two have run with the same seeds;" in discussion.orders(apart)


def test_studies_of_other_images_stand_beside_each_other_alone():
    for study in ("fake", "paper"):  # there is a study called paper
        fake_study.write(study=study)
        for path in Path("outputs", study).rglob("parameters.json"):
            write_json(path, read_json(path) | {"dataset": "cifar100"})
    studies = [Summary.read(ReportParameters(study=name)) for name in ("fake", "paper")]
    assert tables.beside_rows(studies)[0] == ["case", "fake", "paper"]
    assert {len(row) for row in tables.beside_rows(studies)} == {3}
    assert "student" not in discussion.orders(studies)
    assert discussion.orders(studies).startswith("The same cases in other studies, each with its own model and")
    for path in Path("outputs/paper").rglob("parameters.json"):
        write_json(path, read_json(path) | {"dataset": "cifar10"})
    told = discussion.orders([studies[0], Summary.read(ReportParameters(study="paper"))])
    assert "each with its own images (fake: CIFAR-100; paper: CIFAR-10), model and length of training." in told
    assert tables.beside_rows(beside())[0] == ["case", "fake", "other", "student", "paper"]


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
