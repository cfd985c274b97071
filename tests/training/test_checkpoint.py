"""Whatever kills a run, taken up again it ends with the same bits."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from mae_core import devices
from mae_core.errors import NotFiniteError, ParameterError, StoppedError
from mae_core.study import provenance, results
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.tensors import load_tensors, save_tensors
from mae_core.training import checkpoint, objective, runs
from mae_core.training.runs import finetune, pretrain

STAGES = {"pretrain": (PretrainParameters, pretrain), "finetune": (FinetuneParameters, finetune)}
OFTEN = {"checkpoint_seconds": 0.0, "augment": "crop-flip", "width": 32, "decoder_width": 32, "probes": False}
WHOLE = {"case": "whole", "checkpoint_seconds": 1000.0}

# Children are forked from a server that has imported everything: a start costs milliseconds, and no thread is cloned.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["mae_core.training.runs"])


def parameters(stage, tiny, **more):
    values = {**tiny, **OFTEN, **more}
    if stage == "pretrain":
        values.pop("probes")
    return STAGES[stage][0].check(values)


def train(stage, run, folder, die_at=""):
    """What a child process does: train, and kill itself at the named moment, before or after its second renaming."""
    os.chdir(folder)
    replace, seen = Path.replace, []

    def replace_or_die(self, target):
        kinds = {"checkpoint.safetensors": "newest", "checkpoint.before.safetensors": "before"}
        kind = kinds.get(Path(target).name, "other")
        seen.append(kind)
        if die_at == f"before {kind}" and seen.count(kind) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        result = replace(self, target)
        if die_at == f"after {kind}" and seen.count(kind) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if die_at:
        Path.replace = replace_or_die
    STAGES[stage][1](run)


def start(stage, run, die_at=""):
    child = processes.Process(target=train, args=(stage, run, os.getcwd(), die_at))
    child.start()
    return child


def outcome(run, stage):
    """The bytes of a run that do not tell the time."""
    folder = run.folder / stage
    tensors, _ = load_tensors(folder / "weights.safetensors")
    return {name: t.numpy().tobytes() for name, t in tensors.items()}, (folder / "history.json").read_bytes()


@pytest.fixture(scope="module")
def whole_outcome(tmp_path_factory, tiny_values):
    """The outcome of a pre-training that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        run = parameters("pretrain", tiny_values, **WHOLE)
        pretrain(run)
        return outcome(run, "pretrain")


def steps_from_now(monkeypatch):
    """A list that gets an entry each time that a run asks whether a checkpoint is due: after each step and each epoch."""
    asked = []
    monkeypatch.setattr(checkpoint.Checkpoint, "due", lambda self: asked.append(1) and False)
    return asked


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_ends_it_at_a_checkpoint(tiny, stage):
    whole, cut = (parameters(stage, tiny, **{**WHOLE, **more}) for more in ({}, {"case": "cut"}))
    STAGES[stage][1](whole)
    with pytest.raises(StoppedError, match="stopped at step 1 of epoch 1"):
        STAGES[stage][1](cut, watch=lambda at, model, test: os.kill(os.getpid(), signal.SIGTERM))
    assert load_tensors(cut.folder / stage / "checkpoint.safetensors")[1]["step"] == 1
    assert not (cut.folder / stage / "metrics.json").exists()
    STAGES[stage][1](cut)
    assert outcome(cut, stage) == outcome(whole, stage)


def test_every_part_of_a_recipe_goes_on_with_the_same_bits(tiny):
    parts = {"layer_decay": 0.75, "drop_path": 0.2, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "pooling": "mean"}
    more = {**parts, "ema_decay": 0.9, "holdout": 100, "depth": 2}
    whole, cut = (parameters("finetune", tiny, **{**WHOLE, **more, "case": case}) for case in ("whole", "cut"))
    finetune(whole)

    def stop(at, model, test):
        if at.step in (0, 3):
            os.kill(os.getpid(), signal.SIGTERM)

    for moment in ("step 3 of epoch 1", "epoch 1 of 2", "step 3 of epoch 2"):
        with pytest.raises(StoppedError, match=f"stopped (at|after) {moment}"):
            finetune(cut, watch=stop)
    finetune(cut)
    assert outcome(cut, "finetune") == outcome(whole, "finetune")
    (cut.folder / "finetune" / "metrics.json").unlink()
    finetune(cut)  # from the last checkpoint, without a step
    assert outcome(cut, "finetune") == outcome(whole, "finetune")


@pytest.mark.parametrize("stage", STAGES)
def test_killed_ten_times_at_random_it_ends_with_the_same_bits(tiny, stage):
    whole, cut = (parameters(stage, tiny, epochs=12, **more) for more in (WHOLE, {"case": "cut"}))
    STAGES[stage][1](whole)
    newest, clock, reached = cut.folder / stage / "checkpoint.safetensors", random.Random(0), []

    def saved_at():
        with contextlib.suppress(FileNotFoundError):  # while a run replaces it
            return newest.stat().st_mtime_ns
        return 0

    for _ in range(10):
        seen = saved_at()
        child = start(stage, cut)
        while child.is_alive() and saved_at() <= seen:
            time.sleep(0.002)
        time.sleep(clock.uniform(0, 0.1))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, "it ended before it was killed"
        kept = [load_tensors(path)[1] for path in (cut.folder / stage).glob("checkpoint*.safetensors")]
        reached.append(max((about["epoch"], about["step"]) for about in kept))
    assert reached == sorted(set(reached)), "a start has repeated what was saved"
    assert not (cut.folder / stage / "metrics.json").exists()
    child = start(stage, cut)
    child.join()
    assert child.exitcode == 0
    assert outcome(cut, stage) == outcome(whole, stage)


def test_fine_tuning_from_weights_goes_on_with_the_same_bits(tiny, monkeypatch):
    pretrain(parameters("pretrain", tiny))
    start_from = str(parameters("pretrain", tiny).folder / "pretrain" / "weights.safetensors")
    whole = parameters("finetune", tiny, **WHOLE, weights=start_from)
    finetune(whole)
    cut, saved = interrupted(tiny, monkeypatch, "finetune", weights=start_from)
    steps = steps_from_now(monkeypatch)
    finetune(cut)
    assert len(steps) == 16 + 2 - saved[-1][1]
    assert outcome(cut, "finetune") == outcome(whole, "finetune")


@pytest.mark.parametrize(
    ("moment", "saved"), [("before before", 2), ("after before", 2), ("before newest", 1), ("after newest", 2)]
)
def test_killed_while_it_writes_a_checkpoint_it_loses_none(tiny, monkeypatch, whole_outcome, moment, saved):
    cut = parameters("pretrain", tiny, case="cut")
    child = start("pretrain", cut, moment)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    kept = [load_tensors(path)[1]["step"] for path in (cut.folder / "pretrain").glob("checkpoint*.safetensors")]
    steps = steps_from_now(monkeypatch)
    pretrain(cut)
    assert max(kept) == saved
    assert len(steps) == 16 + 2 - saved  # of two epochs of eight steps
    assert outcome(cut, "pretrain") == whole_outcome


def interrupted(tiny, monkeypatch, stage="pretrain", after=3, **more):
    """A run that ended after some checkpoints."""
    run, save, saved = parameters(stage, tiny, **more), checkpoint.Checkpoint.save, []

    def save_then_stop(self, at):
        save(self, at)
        saved.append((at.epoch, at.step))
        if len(saved) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "save", save_then_stop)
        with pytest.raises(StoppedError):
            STAGES[stage][1](run)
    return run, saved


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny, monkeypatch, capsys, whole_outcome, damage):
    run, saved = interrupted(tiny, monkeypatch)
    newest = run.folder / "pretrain" / "checkpoint.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes({"truncated": content[:-100], "one bit": content, "empty": b""}[damage])
    steps = steps_from_now(monkeypatch)
    pretrain(run)
    assert f"{newest} is damaged" in capsys.readouterr().out
    assert len(steps) == 16 + 2 - saved[-2][1]
    assert outcome(run, "pretrain") == whole_outcome


def test_with_both_checkpoints_damaged_it_starts_anew(tiny, monkeypatch, capsys, whole_outcome):
    run, _ = interrupted(tiny, monkeypatch)
    for path in (run.folder / "pretrain").glob("checkpoint*.safetensors"):
        path.write_bytes(b"nothing")
    pretrain(run)
    assert capsys.readouterr().out.count("is damaged") == 2
    assert outcome(run, "pretrain") == whole_outcome


def test_a_checkpoint_of_other_parameters_is_refused_by_name(tiny, monkeypatch):
    interrupted(tiny, monkeypatch)
    with pytest.raises(ParameterError, match=r"mask_ratio is 0.5, but the unfinished run .* has 0.75: delete"):
        pretrain(parameters("pretrain", tiny, mask_ratio=0.5))
    pretrain(parameters("pretrain", tiny, checkpoint_seconds=100.0))


def test_the_newest_checkpoint_of_a_complete_run_goes_last(tiny, monkeypatch):
    run, gone, unlink = parameters("pretrain", tiny), [], Path.unlink
    pretrain(run)
    monkeypatch.setattr(Path, "unlink", lambda self, **how: gone.append(self.name) or unlink(self, **how))
    checkpoint.discard(run.folder / "pretrain")  # which tells from the newest one that the run is complete
    assert gone == ["checkpoint.before.safetensors", "checkpoint.safetensors"]


def test_checkpoints_go_when_the_process_ends_in_order_and_not_before(tiny):
    run = parameters("pretrain", tiny)
    script = "import json, sys; from mae_core import PretrainParameters, pretrain"
    script += "\nrun = PretrainParameters.check(json.loads(sys.argv[1])); pretrain(run)"
    script += "\nassert len(list(run.folder.rglob('checkpoint*.safetensors'))) == 2"
    subprocess.run([sys.executable, "-c", script, json.dumps(run.flat())], check=True)
    assert (run.folder / "pretrain" / "metrics.json").exists()
    assert not list(run.folder.rglob("checkpoint*"))


def test_who_is_killed_after_training_does_not_train_again(tiny, monkeypatch):
    run = parameters("pretrain", tiny)
    pretrain(run)
    first = outcome(run, "pretrain")
    (run.folder / "pretrain" / "metrics.json").unlink()  # as Snakemake does before it repeats what was cut off
    monkeypatch.setattr(checkpoint.Checkpoint, "due", lambda self: pytest.fail("it takes a step"))
    pretrain(run)
    assert outcome(run, "pretrain") == first


def test_who_changes_a_parameter_of_a_complete_run_starts_anew(tiny):
    pretrain(parameters("pretrain", tiny))
    run = parameters("pretrain", tiny, mask_ratio=0.5)
    pretrain(run)
    assert results.read_json(run.folder / "pretrain" / "parameters.json")["mask_ratio"] == 0.5


def test_killed_over_an_earlier_run_it_goes_on_all_the_same(tiny, monkeypatch):
    run = parameters("pretrain", tiny)
    pretrain(run)
    interrupted(tiny, monkeypatch, after=5)
    steps = steps_from_now(monkeypatch)
    pretrain(run)
    assert len(steps) == 16 + 2 - 5


@pytest.mark.parametrize("ingredient", ["code", "data", "weights"])
def test_a_checkpoint_of_other_code_data_or_weights_is_not_taken_up(tiny, monkeypatch, capsys, ingredient):
    run, _ = interrupted(tiny, monkeypatch)
    made_of = provenance.ingredients
    monkeypatch.setattr(provenance, "ingredients", lambda *words: made_of(*words) | {ingredient: "another"})
    steps = steps_from_now(monkeypatch)
    pretrain(run)
    assert f"was made with other {ingredient}: starting anew" in capsys.readouterr().out
    assert len(steps) == 16 + 2


def test_a_checkpoint_of_another_device_is_refused(tiny, monkeypatch):
    run, _ = interrupted(tiny, monkeypatch)
    made_of = provenance.ingredients
    monkeypatch.setattr(provenance, "ingredients", lambda *words: made_of(*words) | {"device": "cuda"})
    with pytest.raises(ParameterError, match=r"device is 'cuda', but the unfinished run .* has 'cpu'"):
        pretrain(run)


def test_time_and_memory_are_counted_over_all_starts(tiny, monkeypatch):
    run, _ = interrupted(tiny, monkeypatch, after=10)
    path = run.folder / "pretrain" / "checkpoint.safetensors"
    tensors, about = load_tensors(path)
    assert 2**26 < about["peak_memory"] < 2**36
    save_tensors(path, tensors, about | {"elapsed": 1000.0, "peak_memory": 2**40})
    pretrain(run)
    metrics = results.read_json(run.folder / "pretrain" / "metrics.json")
    assert 1000 < metrics["wall_seconds"] < 1100
    assert metrics["train_seconds"] < metrics["wall_seconds"]
    assert metrics["peak_memory_bytes"] == 2**40


def test_time_to_load_the_data_counts_in_every_start(tiny, monkeypatch):
    load_both, now = runs.load_both, types.SimpleNamespace(monotonic=lambda: time.monotonic() + slow[0])

    def slowly(*words):
        slow[0] += 500
        return load_both(*words)

    slow = [0.0]
    for module in (runs, checkpoint):
        monkeypatch.setattr(module, "time", now)
    monkeypatch.setattr(runs, "load_both", slowly)
    run, _ = interrupted(tiny, monkeypatch, after=10)
    pretrain(run)
    assert 1000 < results.read_json(run.folder / "pretrain" / "metrics.json")["wall_seconds"] < 1400


def test_the_provenance_names_all_machines_of_a_run(tiny, monkeypatch):
    for name in ("first", "second"):
        monkeypatch.setattr(devices, "cpu_name", lambda name=name: name)
        run, _ = interrupted(tiny, monkeypatch, after=2)
    pretrain(run)
    told = results.read_json(run.folder / "pretrain" / "provenance.json")
    assert [machine.split(",")[0] for machine in told["machines"]] == ["first", "second"]
    assert told["device"].startswith("second, ")


def test_a_run_that_stays_on_its_machine_names_it_once(tiny, monkeypatch):
    run, _ = interrupted(tiny, monkeypatch)
    pretrain(run)
    assert "machines" not in results.read_json(run.folder / "pretrain" / "provenance.json")


def test_a_loss_that_is_not_finite_is_never_saved(tiny, monkeypatch):

    calls, error = [], objective.masked_error

    def fails_at_step_six(*words):
        calls.append(1)
        return error(*words) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(objective, "masked_error", fails_at_step_six)
    run = parameters("pretrain", tiny, epochs=1)
    with pytest.raises(NotFiniteError, match=r"step 6 of epoch 1 is nan .* last good checkpoint is .*checkpoint"):
        pretrain(run)
    _, about = load_tensors(run.folder / "pretrain" / "checkpoint.safetensors")
    assert about["step"] == 5


def test_a_flipped_bit_anywhere_in_weights_is_noticed(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.randn(4, 4), "b": torch.arange(3)}, {"epochs": 10})
    good = path.read_bytes()
    for position in range(len(good)):
        flipped = good[position] ^ 1 << position % 8
        path.write_bytes(good[:position] + bytes([flipped]) + good[position + 1 :])
        with pytest.raises(ValueError, match=r"is damaged|was not written"):
            load_tensors(path)


# Checkpoints alone: of a linear layer that took one step --------------------------------------------------------------

MADE_OF = {"code": "c", "data": "d", "weights": "w", "device": "cpu", "precision": "float32", "machine": "this one"}


def small(folder, seed=0, made_of=MADE_OF, **more):
    torch.manual_seed(seed)
    model, generator = torch.nn.Linear(3, 2), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    folder.mkdir(exist_ok=True)
    averages = {"weight": torch.rand(2, 3), "bias": torch.rand(2)}
    return checkpoint.Checkpoint(folder, model, optimizer, generator, PretrainParameters(**more), made_of, averages)


def position(epoch=0, step=0):
    return checkpoint.Position(
        torch.rand(5), torch.randperm(20), epoch, step, 1.5, {"train_loss": [2.0] * epoch}, [3.0] * epoch
    )


@pytest.fixture
def clock(monkeypatch):
    """The time of checkpoints, in a list."""
    now = [1000.0]
    monkeypatch.setattr(checkpoint, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_what_was_saved_is_restored_all_of_it(tmp_path):
    first, other = small(tmp_path, seed=0), small(tmp_path, seed=1)
    at = position(epoch=2, step=3)
    first.save(at)
    found = other.restore(position())
    assert other.model.weight.equal(first.model.weight)
    assert other.model.bias.equal(first.model.bias)
    assert all(average.equal(first.averages[name]) for name, average in other.averages.items())
    ours, theirs = (kept.optimizer.state_dict()["state"] for kept in (other, first))
    assert {(i, k): v.tolist() for i, s in ours.items() for k, v in s.items()} == {
        (i, k): v.tolist() for i, s in theirs.items() for k, v in s.items()
    }
    assert torch.rand(3, generator=other.generator).equal(torch.rand(3, generator=first.generator))
    assert found.losses_S.equal(at.losses_S)
    assert found.order_n.equal(at.order_n)
    assert all(getattr(found, name) == getattr(at, name) for name in checkpoint.PLAIN)


def test_a_new_position_is_the_start():
    start = checkpoint.Position(torch.zeros(2), torch.zeros(0))
    assert [getattr(start, name) for name in checkpoint.PLAIN] == [0, 0, 0.0, {}, []]


def test_a_checkpoint_is_due_when_the_last_one_is_old_enough(tmp_path, clock):
    kept = small(tmp_path, checkpoint_seconds=60.0)
    for _ in range(2):
        start = clock[0]
        due = []
        for clock[0] in (start, start + 59, start + 60, start + 61):
            due.append(kept.due())
        assert due == [False, False, True, True]
        kept.save(position())


def test_the_time_of_all_starts_adds_up(tmp_path, clock):
    total = 0
    for seconds in (30, 50, 70):
        kept = small(tmp_path)
        clock[0] += 10  # what passes before it is restored counts, too
        kept.restore(position())
        assert kept.elapsed_before == total
        clock[0] += seconds
        kept.save(position())
        clock[0] += 10000  # what passes after the last checkpoint is lost
        total += 10 + seconds
    assert load_tensors(tmp_path / "checkpoint.safetensors")[1]["elapsed"] == 180


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    kept = small(tmp_path)
    for step in (1, 2, 3):
        assert kept.describe().startswith("no checkpoint" if step == 1 else "the last good checkpoint is")
        kept.save(position(step=step))
    steps = {path.name: load_tensors(path)[1]["step"] for path in tmp_path.iterdir()}
    assert steps == {"checkpoint.safetensors": 3, "checkpoint.before.safetensors": 2}
    (tmp_path / "checkpoint.safetensors").unlink()
    assert kept.restore(position()).step == 2


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("how", ["bytes", "code", "data", "weights"])
def test_a_checkpoint_of_no_use_is_set_aside_and_the_one_before_is_tried(tmp_path, capsys, how, damaged):
    for step in (1, 2):
        useless = 2 - step < damaged
        made_of = MADE_OF | ({how: "another"} if useless and how != "bytes" else {})
        small(tmp_path, made_of=made_of).save(position(step=step))
    for name in ("checkpoint", "checkpoint.before")[: damaged if how == "bytes" else 0]:
        (tmp_path / f"{name}.safetensors").write_bytes(b"nothing")
    before = sorted(path.read_bytes() for path in tmp_path.iterdir())
    start = position()
    found = small(tmp_path).restore(start)
    assert (found is start) == (damaged == 2)
    assert found.step == (2, 1, 0)[damaged]
    names = ["checkpoint.set-aside.safetensors", "checkpoint.before.set-aside.safetensors"][:damaged]
    assert {path.name for path in tmp_path.glob("*set-aside*")} == set(names)
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == before
    told = capsys.readouterr().out.splitlines()
    assert len(told) == damaged
    assert all(f"kept as {name}" in line for name, line in zip(names, told, strict=True))


def test_back_at_its_code_a_checkpoint_set_aside_goes_on(tmp_path):
    small(tmp_path).save(position(step=3))
    small(tmp_path, made_of=MADE_OF | {"code": "another"}).restore(position())
    (tmp_path / "checkpoint.set-aside.safetensors").rename(tmp_path / "checkpoint.safetensors")
    assert small(tmp_path).restore(position()).step == 3


def test_a_checkpoint_that_cannot_be_read_is_kept(tmp_path, monkeypatch):
    """It may be whole: permissions or a network are at fault."""

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    for step in (1, 2):
        small(tmp_path).save(position(step=step))
    with monkeypatch.context() as patch:
        patch.setattr("mae_core.study.tensors.open", refuse, raising=False)
        with pytest.raises(ParameterError, match=r"checkpoint.safetensors cannot be read \(Permission denied\)"):
            small(tmp_path).restore(position())
    assert small(tmp_path).restore(position()).step == 2


def test_how_a_run_computes_may_change_and_what_it_computes_may_not(tmp_path):
    small(tmp_path).save(position(step=1))
    for free in (
        {"checkpoint_seconds": 1.0},
        {"micro_batch": 7},
        {"threads": 3},
        {"compile": "off"},
        {"deterministic": True},
        {"data_dir": "moved"},  # the data have a checksum
    ):
        assert small(tmp_path, **free).restore(position()).step == 1
    for name, value in (("epochs", 9), ("width", 96), ("base_lr", 0.5), ("augment", "crop-flip"), ("norm_pix", True)):
        more = {name: value} | ({"decoder_width": 96} if name == "width" else {})
        with pytest.raises(ParameterError, match=rf"{name} is {value!r}, but the unfinished run in .* has "):
            small(tmp_path, **more).restore(position())
    for name in ("device", "precision"):
        with pytest.raises(ParameterError, match=rf"{name} is 'another', but"):
            small(tmp_path, made_of=MADE_OF | {name: "another"}).restore(position())


@pytest.mark.parametrize("curves", ["same", "other", "no results", "damaged"])
def test_checkpoints_of_the_results_are_discarded_whatever_the_clock_said(tmp_path, curves):
    """A clock that was set back must not make an unfinished run look older than the results of the run before it."""
    kept, at = small(tmp_path), position()
    at.history = {"train_loss": [0.1 + 0.2, 1 / 3]}
    kept.save(at)
    kept.save(at)
    (tmp_path / "checkpoint.set-aside.safetensors").touch()
    (tmp_path / "weights.safetensors").touch()
    results.write_json(tmp_path / "history.json", at.history if curves != "other" else {"train_loss": [0.5]})
    if curves != "no results":
        (tmp_path / "metrics.json").touch()
    if curves == "damaged":
        (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    for age in (-1, 1):
        os.utime(tmp_path / "history.json", ns=(10**18 + age, 10**18 + age))
        checkpoint.discard(tmp_path)
        assert len(list(tmp_path.glob("checkpoint*"))) == (0 if curves == "same" else 3)
    assert (tmp_path / "weights.safetensors").exists()
