"""Which parts a report has, by the runs of its study."""

import shutil
from pathlib import Path

import fake_study
import pytest

from mae_core.report import parts, tables
from mae_core.report.claims import Claim, shown
from mae_core.report.text import discussion, findings, front, method, verdicts, words
from mae_core.study.results import read_json, write_json


@pytest.fixture
def written(elsewhere):
    """A function that writes a fake study, on images of one's own or not, and reads it."""

    def write(*cases, own=True, tuned=True, **more):
        shutil.rmtree("outputs", ignore_errors=True)
        fake_study.write(cases={case: (fake_study.CASES | fake_study.SWEEP)[case] for case in cases}, **more)
        for path in list(Path("outputs").rglob("parameters.json")):
            if own:
                write_json(path, read_json(path) | {"dataset": "folder", "data_dir": "some/birds"})
            if not tuned and path.parent.name == "finetune":
                shutil.rmtree(path.parent)
        return fake_study.read_again()

    return write


def test_a_study_on_the_students_images_has_every_part(written):
    every = parts.parts(written(*fake_study.CASES, own=False))
    assert parts.parts(written("random-75", own=False)) == every - {"curves-scratch"}
    swept = parts.parts(written(*fake_study.CASES, *fake_study.SWEEP))
    assert swept == every | {"tab-ratio", "tab-work"}  # of runs on request
    assert len(tables.sampling_rows(written("random-75", own=False))) == 1 + 4


def test_no_curve_from_scratch_is_promised_where_none_has_run(written):
    summary = written("random-75", "block-50", own=False)
    assert summary.whole
    told = " ".join([findings.curves(summary), findings.curves_caption(summary), *findings.curves_alt(summary)])
    assert "scratch" not in told
    assert "scratch" in findings.curves_caption(written("random-75", "scratch", own=False))


def test_the_report_does_not_say_that_other_peoples_weights_saw_no_labels(written):
    assert findings.attention(written("random-75")).endswith("frozen encoder, which was trained without labels.")
    summary = written("random-75")
    shutil.rmtree("outputs/fake/random-75/seed0/pretrain")
    path = Path("outputs/fake/random-75/seed0/finetune/parameters.json")
    write_json(path, read_json(path) | {"weights": "some/vit"})
    summary = fake_study.read_again()
    assert "fig-reconstructions" not in parts.parts(summary)
    assert findings.attention(summary).endswith("of the frozen encoder.")


def test_a_table_of_equal_compute_needs_its_fine_tuned_run(written):
    cases = ("random-75", "block-50", "random-75-longer")
    assert "tab-work" in parts.parts(written(*cases))
    assert "tab-work" not in parts.parts(written(*cases, tuned=False))


def test_a_faultless_classifier_has_no_mistakes_to_show(written):
    summary = written("random-75", own=False, seeds=(0, 1))
    first, second = (Path(f"outputs/fake/random-75/seed{seed}/finetune/metrics.json") for seed in (0, 1))
    write_json(first, read_json(first) | {"mistakes": {"images": []}})
    assert "fig-mistakes" in parts.parts(summary)
    write_json(second, read_json(second) | {"mistakes": {"images": []}})
    assert "fig-mistakes" not in parts.parts(summary)


def test_one_case_of_own_images_is_compared_with_nothing(written):
    summary = written("random-75")
    there = {"curves-tuned", "tab-chance", "fig-reconstructions"} | {f"fig-{name}" for name in parts.TUNED}
    assert parts.parts(summary) == there
    told = " ".join([front.introduction(summary), front.abstract(summary), method.finetuning(summary)])
    assert "claim" not in told.lower()
    assert "From scratch" not in told
    assert discussion.discussion(summary) == verdicts.sensitivity(summary) == findings.sampling(summary) == ""


def test_what_two_kinds_of_masks_add(written):
    summary = written("random-75", "block-75")
    there = parts.parts(summary)
    assert there >= {"fig-samplings", "tab-sampling", "fig-accuracy", "tab-claims", "tab-sensitivity"}
    assert not there & {"tab-tokens", "tab-ratio", "tab-work", "curves-scratch"}
    assert [row[0] for row in tables.sampling_rows(summary)] == ["masks", "random", "block"]
    assert "Grid" not in method.masks(summary)
    assert "BEiT" in method.masks(summary)
    assert list(findings.samplings(summary)["kinds of masks"]) == ["random 75 %", "block 75 %"]


def test_ratios_alone_stand_in_one_figure(written):
    summary = written("random-75", "random-50")
    assert parts.parts(summary) >= {"fig-samplings", "tab-ratio"}
    assert list(findings.samplings(summary)["kinds of masks"]) == ["random 50 %", "random 75 %"]
    assert findings.ratio_and_work(summary).startswith("## Masking ratio\n")


def test_own_images_without_random_75_have_another_default_case(written):
    summary = written("block-75", "grid-75", "scratch", seeds=(0, 1, 2))
    assert summary.default is summary.cases["block-75"]
    abstract = front.abstract(summary)
    assert "an encoder pre-trained with 75 % block masking reaches 83.00 ± " in abstract
    assert "no classifier" not in abstract
    assert "pre-training loss, 75 % block masking." in findings.curves_caption(summary)
    assert [row[0] for row in tables.recipe_rows(summary)][:3] == ["parameter", "dataset", "augment"]
    claims = {claim.statement: claim.verdict for claim in shown(summary)}
    assert claims["Pre-training beats training from scratch"] == "supported"
    assert "from block 75 %" in verdicts.chance(summary)
    assert [row[0] for row in tables.sensitivity_rows(summary)] == ["case", "grid 75 %", "from scratch"]


def test_the_students_images_without_random_75_have_another_default_case_too(written):
    summary = written("block-75", "grid-75", "scratch", own=False, seeds=(0, 1, 2))
    assert summary.default is summary.cases["block-75"]
    assert "an encoder pre-trained with 75 % block masking reaches 83.00 ± " in front.abstract(summary)
    told = [verdicts.chance(summary), verdicts.sensitivity(summary), discussion.discussion(summary)]
    assert "from block 75 %" in verdicts.chance(summary)
    assert "not run" not in " ".join(told)
    assert "**Pre-training** changes the accuracy by +13" in discussion.discussion(summary)


def test_a_report_without_two_cases_to_compare_says_so(written):
    summary = written("random-75", "block-75", own=False, seeds=(0, 1), skip=(("random-75", 1), ("block-75", 0)))
    assert verdicts.sensitivity(summary) == "No case shares a seed with random 75 %."
    lone = written("scratch", own=False)
    assert discussion.discussion(lone) == "There is nothing to discuss yet: no two cases can be compared."
    assert "difference from random 75 % for each seed" in verdicts.chance(lone)  # which has not run


def test_a_case_with_one_seed_each_has_no_interval(written):
    summary = written("random-75", "block-75", seeds=(0, 1), skip=(("random-75", 1), ("block-75", 0)))
    text = words.intervals(summary)
    assert text.startswith(
        "No case has more than one seed, so there are no intervals over seeds: how much the accuracies and the order"
    )
    assert "how much the accuracies depend on the seed is unknown" in words.intervals(written("random-75"))
    assert "how much the results depend on the seed is unknown" in words.intervals(written("random-75", tuned=False))


@pytest.mark.parametrize("own", [True, False])
def test_a_study_that_pre_trains_only_speaks_of_no_accuracy(written, own):
    summary = written("random-75", "grid-75", own=own, tuned=False, seeds=(0, 1))
    assert parts.parts(summary) == {"fig-reconstructions", "fig-samplings", "tab-claims"}
    main = {row[0]: row[1:] for row in tables.main_rows(summary)}
    assert main["minutes"] == ["1.2", "1.2"]
    assert set(main) == {"quantity", "test loss", "PSNR (dB)", "FLOPs", "minutes", "images/s", "memory (MiB)"}
    assert tables.feature_rows(summary)[0] == ["case", "loss", "PSNR (dB)"]
    for rows, n_columns in ((tables.cost_rows, 6), (tables.feature_rows, 3), (tables.recipe_rows, 2)):
        assert {len(row) for row in rows(summary)} == {n_columns}
    told = [findings.main_caption(summary), front.introduction(summary), discussion.discussion(summary)]
    told += [findings.main_notes(summary), findings.curves(summary), findings.features(summary), method.finetuning(summary)]
    told += [front.abstract(summary)]
    assert "accurac" not in " ".join(told)
    assert "± is explained in the [abstract]" in findings.main_notes(summary)
    assert " dB (PSNR); no classifier was fine-tuned. " in front.abstract(summary)
    assert "± is the half-width of the 95 % interval of the mean over the 2 seeds" in front.abstract(summary)
    assert "(#tab-chance)" not in front.abstract(summary)
    missing = "Of the student's cases, random 75 % + mask tokens, block 50 % and block 75 % have not run. "
    assert (missing in front.abstract(summary)) == (not own)
    assert "here, no case has been fine-tuned" in front.introduction(summary)


def test_validation_images_are_named_in_every_abstract(written):
    def hold(**how):
        written("random-75", "scratch", **how)
        for path in Path("outputs").rglob("parameters.json"):
            write_json(path, read_json(path) | {"holdout": 5000})
        return front.abstract(fake_study.read_again())

    told = "where it says test images, it means 5,000 validation images, held out from the training images"
    own = hold()
    assert told in own
    assert "% validation accuracy after fine-tuning" in own
    for own in (True, False):
        only = hold(own=own, tuned=False)
        assert told in only
        assert "masked pixels of validation images" in only


def test_a_fine_tuning_may_hold_out_images_where_its_pre_training_did_not(written):
    written("random-75", "scratch", own=False)
    for path in Path("outputs").rglob("finetune/parameters.json"):
        write_json(path, read_json(path) | {"holdout": 500})
    text = front.abstract(fake_study.read_again())
    assert "it means 500 validation images" in text
    assert "% validation accuracy after fine-tuning" in text


def test_a_fine_tuning_of_weights_from_elsewhere_has_an_accuracy(written):
    for own in (True, False):
        written("random-75", own=own)
        shutil.rmtree("outputs/fake/random-75/seed0/pretrain")
        text = front.abstract(fake_study.read_again())
        assert "no case of this study has been pre-trained; fine-tuning of the case *random-75* reaches 84.00 %" in text


def test_seeds_that_are_only_pre_trained_give_accuracies_no_interval(written):
    written("random-75", "scratch", own=False, seeds=(0, 1))
    shutil.rmtree("outputs/fake/random-75/seed1/finetune")
    shutil.rmtree("outputs/fake/scratch/seed1")
    text = front.abstract(fake_study.read_again())
    assert "There is one seed, so there are no intervals" in text


def test_plain_pixels_are_the_usual_target_whatever_the_order_of_names(written):
    written("random-75", "block-50", own=False)
    path = Path("outputs/fake/block-50/seed0/pretrain/parameters.json")
    write_json(path, read_json(path) | {"norm_pix": True, "mask_strategy": "random", "mask_ratio": 0.75})
    summary = fake_study.read_again()  # block-50 is read first
    assert list(summary.cases) == ["block-50", "random-75"]
    assert [case.label for case in summary.cases.values()] == ["random 75 %, normalized pixels", "random 75 %"]
    assert summary.default.name == "random-75"


def test_training_from_scratch_alone_has_an_accuracy(written):
    for own in (True, False):
        text = front.abstract(written("scratch", own=own, seeds=(0, 1)))
        assert "no case of this study has been pre-trained; training from scratch reaches 70.0" in text
        assert "± is the half-width" in text


def test_one_verdict_is_told_in_the_singular(written, monkeypatch):
    summary = written("random-75", "mask-tokens", own=False, tuned=False, seeds=(0, 1))
    assert verdicts.correction(summary) == "One claim has a p-value, so there is no number of claims to correct for."
    assert "survive" not in front.abstract(summary)
    judged = [
        Claim("a", "this study", "+1", "supported", "1", 0.01, 0.02),
        Claim("b", "this study", "+1", "undecided", "1", 0.3, 0.3),
    ]
    for module, name in ((verdicts, "claims"), (front, "shown")):
        monkeypatch.setattr(module, name, lambda summary: judged)
    told = "Of the supported or contradicted ones, 1 rests on a statistical test, and 1 of these survives a correction"
    assert told in front.abstract(summary)
    assert verdicts.correction(summary).endswith("With Holm's correction for all 2, this verdict survives.")
