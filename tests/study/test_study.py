import copy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from mae_core.errors import ParameterError
from mae_core.evaluation import flops
from mae_core.model.config import ModelConfig
from mae_core.report.published import LENGTHS
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.sources import sources
from mae_core.study.study import Study, flat_yaml

ROOT = Path(__file__).parents[2]
SIX = {"random-75", "mask-tokens", "block-50", "block-75", "grid-75", "scratch"}


@pytest.fixture
def smoke():
    return yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["smoke", "laptop", "night", "paper"])
def test_every_study_has_the_six_cases_and_checks(name):
    study = Study.read(ROOT / "params" / f"{name}.yaml")
    assert study.name == name
    assert set(study.cases) == SIX
    for case in study.cases:
        for stage in study.stages(case):
            run = study.run(case, study.seeds[-1], stage)
            assert run.folder == Path("outputs") / name / case / f"seed{study.seeds[-1]}"


def test_the_paper_study_is_the_students_recipe():
    study = Study.read(ROOT / "params" / "paper.yaml")
    pretraining, finetuning = (study.run("random-75", 0, stage) for stage in ("pretrain", "finetune"))
    assert study.seeds == (0, 1, 2)
    assert (pretraining.batch_size, pretraining.base_lr, pretraining.beta2) == (4096, 1.5e-4, 0.95)
    assert (finetuning.epochs, finetuning.batch_size, finetuning.base_lr, finetuning.warmup_epochs) == (100, 128, 1e-3, 5)
    assert pretraining.weight_decay == finetuning.weight_decay == 0.05
    assert pretraining.model.n_patches == 256
    assert pretraining.augment == finetuning.augment == "none"
    assert pretraining.train_images == 0


def test_the_speedrun_is_the_reports_model():
    study = Study.read(ROOT / "params" / "speedrun.yaml")
    case = "random-75"
    assert list(study.cases) == [case, "scratch"]
    pretraining, finetuning = (study.run(case, 0, stage) for stage in study.stages(case))
    assert pretraining.model == ModelConfig()
    assert pretraining.dataset == finetuning.dataset == "cifar10"
    assert pretraining.train_images == finetuning.train_images == 0


@pytest.mark.parametrize("name", ["speedrun-cpu", "best-cpu"])
def test_the_recipes_for_a_cpu_learn_all_of_cifar10_and_are_judged_by_the_test_images(name):
    study = Study.read(ROOT / "params" / f"{name}.yaml")
    assert list(study.cases) == ["random-75", "scratch"]
    for case in study.cases:
        for stage in study.stages(case):
            run = study.run(case, 0, stage)
            assert (run.dataset, run.train_images, run.holdout, run.threads) == ("cifar10", 0, 0, 2)
    assert run.pooling == "mean"


def test_scratch_has_the_same_recipe_and_no_weights():
    study = Study.read(ROOT / "params" / "laptop.yaml")
    ours, scratch = (study.run(case, 0, "finetune").flat() for case in ("random-75", "scratch"))
    assert scratch.pop("weights") == ""
    assert ours.pop("weights") == "outputs/laptop/random-75/seed0/pretrain/weights.safetensors"
    assert {**ours, "case": ""} == {**scratch, "case": ""}
    with pytest.raises(ParameterError, match="scratch starts from scratch"):
        study.run("scratch", 0, "pretrain")


def test_three_maskings_are_trained_for_three_lengths_that_differ_in_nothing_else():
    study = Study.read(ROOT / "params" / "laptop.yaml")
    assert not study.lengths.keys() & (study.cases.keys() | study.sweep.keys())
    assert set(study.lengths) == set(LENGTHS)
    found = {}
    for name in study.lengths:
        longer = study.run(name, 2, "pretrain")
        usual = study.run(name.rpartition("-")[0], 2, "pretrain")
        assert longer == usual.model_copy(update={"case": name, "epochs": longer.epochs})
        found.setdefault(usual.case, {usual.epochs}).add(longer.epochs)
        tuned = study.run(name, 2, "finetune")
        assert tuned.weights == f"outputs/laptop/{name}/seed2/pretrain/weights.safetensors"
    assert found == {case: {5, 10, 20} for case in ("random-75", "block-50", "grid-75")}


@pytest.mark.parametrize("name", ["laptop", "night"])
def test_the_two_studies_on_cifar10_stand_beside_each_other(name):
    assert Study.read(ROOT / "params" / f"{name}.yaml").beside == ({"laptop": "night", "night": "laptop"}[name],)


def test_the_sweep_is_part_of_the_laptop_study_and_runs_on_request():
    study = Study.read(ROOT / "params" / "laptop.yaml")
    ratios = {name: study.run(name, 0, "pretrain").mask_ratio for name in study.sweep}
    assert ratios == {"random-25": 0.25, "random-50": 0.5, "random-90": 0.9, "random-75-longer": 0.75}
    assert not study.sweep.keys() & study.cases.keys()
    assert (study.seeds, study.more_seeds, study.sweep_seeds) == ((0,), tuple(range(1, 10)), (0, 1, 2))
    assert study.run("scratch", 2, "finetune").seed == 2


@pytest.mark.parametrize("name", ["laptop", "night"])
def test_the_longer_case_has_the_compute_of_block_50(name):
    study = Study.read(ROOT / "params" / f"{name}.yaml")
    usual, longer = (study.run(case, 0, "pretrain") for case in ("random-75", "random-75-longer"))
    block50, work = study.run("block-50", 0, "pretrain"), {}
    for run in (usual, longer, block50):
        work[run.case] = flops.of_pretraining(run) * run.epochs
    assert work["random-75-longer"] / work["block-50"] == pytest.approx(1, abs=0.02)
    assert longer == usual.model_copy(update={"case": longer.case, "epochs": longer.epochs})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(more_seeds=[0]), "list each seed once"),
        (lambda s: s.update(more_seeds=1), "more_seeds is 1"),
        (lambda s: s.update(sweep_seeds=[0, 7]), "sweep_seeds has 7: choose among seeds and more_seeds"),
        (lambda s: s.update(sweep={"random-75": {}}), "random-75 is under both cases and sweep"),
        (lambda s: s.update(sweep=["random-50"]), "sweep is .*: it must be a mapping"),
        (lambda s: s.update(sweep={"a/b": {}}), "sweep is 'a/b'"),
        (lambda s: s.update(sweep={"more": {"mask_ration": 0.5}}), "case more, pretrain: mask_ration .* mask_ratio"),
        (lambda s: s.update(lengths={"random-75": {}}), "random-75 is under both cases and lengths"),
        (lambda s: s.update(sweep={"a": {}}, lengths={"a": {}}), "a is under both sweep and lengths"),
        (lambda s: s.update(lengths={"more": {"epoch": 5}}), "case more, pretrain: epoch .* epochs"),
        (lambda s: s.update(beside=["smoke"]), r"beside is \['smoke'\]: list other studies than smoke"),
        (lambda s: s.update(beside=["night", "night"]), "list other studies than smoke, each once"),
        (lambda s: s.update(beside=["../night"]), "beside is"),
        (lambda s: s.update(seeds=[]), "seeds is"),
        (lambda s: s.update(seeds=[0, 0]), "list each seed once"),
        (lambda s: s.update(seeds=["0"]), "whole numbers"),
        (lambda s: s.update(seeds=[0, -1]), "non-negative whole numbers"),
        (lambda s: s.pop("study"), "study is missing: it is a key of a study file that must be given"),
        (lambda s: s.update(pretrain=[]), "pretrain is"),
        (lambda s: s["cases"].update({75: {}}), "cases is 75"),
        (
            lambda s: s["cases"].update({False: {}}),
            "cases is False: it must be text .YAML reads no and off as false, .*quotes",
        ),
        (lambda s: s["cases"].update({"more": {"seed": 3}}), "case more: seed is set by the study"),
        (lambda s: s["finetune"].update(weights="vit"), "finetune: weights is set by the study .*notebooks/finetune.ipynb"),
        (lambda s: s["pretrain"].update(depth=9), "depth differs between pretrain and finetune; put it under shared"),
        (lambda s: s["finetune"].update(holdout=9), "holdout differs between pretrain and finetune; put it under shared"),
        (lambda s: s.update(cases={}), "cases is {}: it must have at least one entry"),
        (lambda s: s.update(case={}), "case is not a key of a study file; did you mean cases?"),
        (lambda s: s.update(study="../../etc"), "study is '../../etc'"),
        (lambda s: s["cases"].update({"a/b": {}}), "cases is 'a/b'"),
        (lambda s: s["cases"].update({"more": {"mask_ration": 0.5}}), "case more, pretrain: mask_ration .* mask_ratio"),
        (lambda s: s["cases"].update({"more": 0.5}), "more is 0.5: it must be a mapping of parameters"),
        (lambda s: s["pretrain"].update(base_lr="1e-3"), "base_lr is '1e-3'.*1.0e-3"),
        (lambda s: s["shared"].update(dataset="cifar"), "did you mean cifar10"),
        (lambda s: s["shared"].update(mask_ratio=0.5), "finetune: mask_ratio is not a parameter"),
    ],
)
def test_a_study_that_cannot_run_is_refused(smoke, change, message):
    content = copy.deepcopy(smoke)
    change(content)
    with pytest.raises(ParameterError, match=message):
        Study.check(content)


@pytest.mark.parametrize("text", ["- a\n- b", "study: [", ""])
def test_a_file_that_is_no_study_is_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParameterError, match="study file"):
        Study.read(path)
    with pytest.raises(ParameterError, match="cannot be read"):
        Study.read(tmp_path / "missing.yaml")


def test_a_cases_own_encoder_is_fine_tuned_too(smoke):
    smoke["cases"]["deep"] = {"depth": 6}
    study = Study.check(smoke)
    assert [study.run("deep", 0, stage).depth for stage in ("pretrain", "finetune")] == [6, 6]


def test_a_file_must_have_its_studys_name(tmp_path, smoke):
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(smoke), encoding="utf-8")
    with pytest.raises(ParameterError, match=r"study is 'smoke', but its file is .*copy.yaml"):
        Study.read(path)


def test_flat_yaml_survives_yaml():
    run = PretrainParameters(base_lr=1e-5, weight_decay=1e-05)
    assert PretrainParameters.check(yaml.safe_load(flat_yaml(run.flat()))) == run
    assert "\n" not in flat_yaml(run.flat())


def test_one_command_prints_the_parameters_of_a_run():
    words = [sys.executable, "-m", "mae_core", "parameters", "params/paper.yaml", "block-50", "2", "pretrain"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    run = PretrainParameters.check(yaml.safe_load(done.stdout))
    assert (run.study, run.case, run.seed, run.mask_strategy, run.mask_ratio) == ("paper", "block-50", 2, "block", 0.5)
    assert done.stderr == ""
    wrong = subprocess.run([*words[:5], "blok-50", "0", "pretrain"], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert wrong.returncode != 0
    assert wrong.stderr.startswith("ParameterError: case is 'blok-50'")
    assert "Traceback" not in wrong.stderr


def test_sources_follow_imports():
    pretrain, report = (set(sources(ROOT / "notebooks" / f"{n}.ipynb")) for n in ("pretrain", "report"))
    assert {
        "mae_core/training/runs.py",
        "mae_core/model/masking.py",
        "mae_core/data/__init__.py",
        "mae_core/data/cifar.py",
        "mae_core/training/member.py",  # started by its name, not imported
    } <= pretrain
    assert (
        not {
            "mae_core/report/text/front.py",
            "mae_core/report/export.py",
            "mae_core/study/study.py",
            "mae_core/explore/trained.py",
        }
        & pretrain
    )
    assert {"mae_core/report/text/front.py", "mae_core/report/tables.py", "mae_core/report/claims.py"} <= report
    assert "mae_core/training/runs.py" not in report
    assert "mae_core/report/markup.py" in sources(ROOT / "mae_core" / "report" / "export.py")


@pytest.mark.parametrize("line", ["run?", "??run", "  %time run", "!ls", "x = !ls"])
def test_what_ipython_adds_to_python_does_not_hide_imports(tmp_path, line):
    cells = [
        f"from mae_core.model import vit\n{line}" if line[0] != " " else f"from mae_core.model import vit\nif True:\n{line}"
    ]
    write_notebook(tmp_path / "n.ipynb", cells)
    assert "mae_core/model/vit.py" in sources(tmp_path / "n.ipynb")


def test_a_cell_that_is_no_python_is_named(tmp_path):
    write_notebook(tmp_path / "n.ipynb", ["import mae_core", "epochs ="])
    with pytest.raises(
        ParameterError, match=r"n.ipynb, cell 2: invalid syntax in line 1: complete that cell, or delete it"
    ):
        sources(tmp_path / "n.ipynb")


def write_notebook(path, cells):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)


def test_stages_have_their_own_parameters():
    assert not hasattr(FinetuneParameters(), "mask_ratio")
    assert not hasattr(PretrainParameters(), "weights")


def test_fine_tuning_may_have_images_of_another_size(smoke):
    smoke["finetune"]["image_size"] = 48
    sizes = {stage: Study.check(smoke).run("random-75", 0, stage).image_size for stage in ("pretrain", "finetune")}
    assert sizes == {"pretrain": 32, "finetune": 48}
    smoke["cases"]["random-75"]["image_size"] = 64  # of a case, it is that of both stages
    assert Study.check(smoke).run("random-75", 0, "finetune").image_size == 64


def test_values_that_yaml_merges_are_no_duplicates_and_an_impossible_date_is_explained(smoke, tmp_path):
    path = tmp_path / "merged.yaml"
    text = (
        "study: merged\nseeds: [0]\nshared: &usual\n  dataset: shapes\n"
        "pretrain:\n  <<: *usual\n  epochs: 3\ncases: {random-75: {}}\n"
    )
    path.write_text(text, encoding="utf-8")
    assert Study.read(path).pretrain == {"dataset": "shapes", "epochs": 3}
    path.write_text(text.replace("epochs: 3", "epochs: 2024-02-30"), encoding="utf-8")
    with pytest.raises(ParameterError, match="is not YAML: day is out of range"):
        Study.read(path)
