import math
import signal
import types

import pytest
import torch
from tqdm import tqdm

from mae_core.data.images import Split, augment, scale_pixels
from mae_core.data.mixing import mix
from mae_core.errors import NotFiniteError, ParameterError, StoppedError
from mae_core.evaluation import classification
from mae_core.model.mae import Classifier
from mae_core.model.vit import drop_paths
from mae_core.study import provenance
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import read_json
from mae_core.study.tensors import load_tensors
from mae_core.training import loop, objective
from mae_core.training.checkpoint import Checkpoint
from mae_core.training.loop import compile_loss, fit, learning_rate, progress, sum_of_weights
from mae_core.training.optimizer import new_optimizer
from mae_core.training.plan import choose_plan
from mae_core.training.replicas import Replicas
from mae_core.training.runs import finetune, new_model, pretrain


def weights(run, stage="pretrain"):
    return load_tensors(run.folder / stage / "weights.safetensors")[0]


def test_the_learning_rate_rises_then_falls_as_half_a_cosine():
    run = PretrainParameters(epochs=20, warmup_epochs=4.0, base_lr=1e-3, batch_size=512)
    assert learning_rate(0, run) == 0
    assert learning_rate(2, run) == pytest.approx(1e-3)
    assert learning_rate(4, run) == pytest.approx(2e-3)
    assert learning_rate(12, run) == pytest.approx(1e-3)
    assert learning_rate(8, run) == pytest.approx(1e-3 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(20, run) == pytest.approx(0)
    assert learning_rate(0, PretrainParameters(warmup_epochs=0.0, base_lr=1e-3, batch_size=512)) == 2e-3


def test_a_loss_that_is_not_finite_stops_the_run(tiny, monkeypatch):
    monkeypatch.setattr(objective, "masked_error", lambda pred, *rest: pred.float().mean() * float("nan"))
    run = PretrainParameters.check(tiny)
    with pytest.raises(NotFiniteError, match=r"step 1 of epoch 1 is nan at a learning rate of .*: lower base_lr; no"):
        pretrain(run)
    assert not (run.folder / "pretrain" / "metrics.json").exists()


@pytest.mark.parametrize("when", ["in the first epoch", "after it", "in the last step"])
def test_stop_saves_at_once_and_the_next_run_goes_on(tiny, when, capsys):
    whole = PretrainParameters.check({**tiny, "case": "whole"})
    pretrain(whole)
    run = PretrainParameters.check({**tiny, "checkpoint_seconds": 1000.0})
    last, handler = 512 // run.batch_size, signal.getsignal(signal.SIGINT)

    def press_stop(at, model, test):
        here = {"in the first epoch": (0, 3), "after it": (1, 0), "in the last step": (1, last)}[when]
        if (at.epoch, at.step) == here:
            signal.raise_signal(signal.SIGINT)

    if when == "in the last step":  # there is nothing left to stop
        pretrain(run, watch=press_stop)
    else:
        with pytest.raises(StoppedError, match=r"^stopped (at step 3 of epoch 1|after epoch 1 of 2): run again to"):
            pretrain(run, watch=press_stop)
        assert "resumed" not in capsys.readouterr().out
        pretrain(run)
        assert f"resumed at step {4 if when == 'in the first epoch' else 1} of epoch" in capsys.readouterr().out
    assert not list(tqdm._instances)  # a bar that stays open would push the next one to another line
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(run)[name])
    assert signal.getsignal(signal.SIGINT) is handler


def test_stop_pressed_twice_interrupts_at_once(tiny):
    def press_twice(at, model, test):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    with pytest.raises(StoppedError, match="run again"):
        pretrain(PretrainParameters.check(tiny), watch=press_twice)


def test_micro_batches_add_up_to_the_whole_batch(tiny):
    runs = [FinetuneParameters.check({**tiny, "case": f"m{m}", "micro_batch": m, "precision": "float32"}) for m in (0, 16)]
    for run in runs:
        finetune(run)
    first, second = (weights(run, "finetune") for run in runs)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=2e-3)
    losses = [read_json(run.folder / "finetune" / "history.json")["train_loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_moving_average_is_evaluated_and_saved(tiny, monkeypatch):
    run = FinetuneParameters.check({**tiny, "ema_decay": 0.5, "probes": False, "augment": "crop-flip"})
    average, averages, evaluated, scores = [], [], [], classification.class_scores

    def follow(at, model, test):
        if at.step:  # it is called after epochs, too
            average[:] = [0.5 * average[0] + 0.5 * head(model)]
            averages.extend(average if at.step == 8 else [])

    def look(model, *words):
        evaluated.append(head(model))
        return scores(model, *words)

    monkeypatch.setattr(classification, "class_scores", look)
    average.append(head(new_model(Classifier, run, torch.device("cpu"))))
    model = finetune(run, watch=follow)
    for found, expected in zip(evaluated, [*averages, averages[-1]], strict=True):  # the last epoch's again for predictions
        torch.testing.assert_close(found, expected)
    assert weights(run, "finetune")["head.weight"].equal(evaluated[-1])
    assert head(model).equal(evaluated[-1])


def head(model):
    return model.head.weight.detach().clone()


def test_a_batch_larger_than_the_data_is_refused(tiny):
    with pytest.raises(ParameterError, match="batch_size is 1024: there are only 512 training images"):
        pretrain(PretrainParameters.check({**tiny, "batch_size": 1024}))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_takes_its_images_and_moves_the_weights_by_its_rate(monkeypatch, compiled):
    """AdamW's first step moves a weight without decay by the rate, whatever its gradient, unless it is zero."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function: asked.append(function) or function)
    torch.manual_seed(0)
    model = torch.nn.Linear(3 * 4 * 4, 2)
    images = torch.randint(256, (10, 3, 4, 4), dtype=torch.uint8)
    train = Split(images, torch.arange(10) % 2, ("a", "b"))

    def loss_of(copy, images_BCHW, labels_B):
        return torch.nn.functional.cross_entropy(copy(images_BCHW.flatten(1)), labels_B)

    aim = objective.Objective(draw=lambda images_BCHW, labels_B, generator: (images_BCHW, labels_B), loss_of=loss_of)
    run = FinetuneParameters(precision="float32", weight_decay=0.0, compile="on" if compiled else "off")
    plan = choose_plan(run, torch.device("cpu"))
    optimizer = new_optimizer(model, run)
    step = loop.new_step(model, aim, train, run, plan, optimizer, torch.Generator())
    before, batch = [p.detach().clone() for p in model.parameters()], torch.tensor([7, 2, 4])
    with torch.no_grad():
        expected = loss_of(model, images[batch].float() / 127.5 - 1, train.labels_n[batch])
    assert step(batch, 0.125).item() == pytest.approx(expected.item(), rel=1e-6)
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close((new - old).abs(), torch.full_like(old, 0.125), rtol=1e-4, atol=0)
    assert len(asked) == compiled


PARTS = {"augment": "crop-flip", "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2}


@pytest.mark.parametrize("on", [(), *((part,) for part in PARTS), ("mixup", "cutmix"), tuple(PARTS)], ids=" ".join)
def test_a_step_crops_flips_mixes_and_drops_branches_as_its_run_says(monkeypatch, on):
    run = FinetuneParameters(depth=3, **{part: PARTS[part] for part in on})
    train = Split(torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 4, tuple("abcd"))
    model, got, batch = torch.nn.Linear(1, 1), [], torch.randperm(20)[:12]
    monkeypatch.setattr(Replicas, "compute_gradients", lambda self, *given: got.extend(given) or torch.zeros(()))
    generator, again = (torch.Generator().manual_seed(5) for _ in range(2))
    plan = choose_plan(run, torch.device("cpu"))
    loop.new_step(model, objective.classification(run, 4), train, run, plan, new_optimizer(model, run), generator)(
        batch, 0.1
    )
    images_BCHW, targets, _ = got

    plain_BCHW, labels_B = scale_pixels(train.images_nCHW[batch]), train.labels_n[batch]
    expected_BCHW, classes, paths = plain_BCHW, labels_B, None
    if "augment" in on:
        expected_BCHW = scale_pixels(augment(train.images_nCHW[batch], "crop-flip", again))
    if "mixup" in on or "cutmix" in on:
        alphas = [PARTS[part] * (part in on) for part in ("mixup", "cutmix")]
        expected_BCHW, classes = mix(expected_BCHW, labels_B, 4, *alphas, again)
    if "drop_path" in on:
        paths = drop_paths(12, 3, 0.2, again, torch.device("cpu"))
    assert images_BCHW.equal(expected_BCHW)
    assert images_BCHW.equal(plain_BCHW) == (not set(on) - {"drop_path"})
    assert targets.classes.equal(classes)
    assert targets.paths_BL2 is None if paths is None else targets.paths_BL2.equal(paths)


# The loop alone: 70 images in batches of 16, so 4 steps an epoch, which compute nothing ------------------------------


@pytest.fixture
def fit_idly(tmp_path, monkeypatch):
    """A function that runs the loop with ``step``, given the images' indices, in place of a step.

    It returns the indices and the rate of every step, the history and the metrics.
    """
    ingredients = {"code": "", "data": "", "weights": "", "device": "cpu", "precision": "float32", "machine": "this one"}
    monkeypatch.setattr(provenance, "ingredients", lambda *words: ingredients)
    train = Split(torch.zeros(70, 3, 32, 32, dtype=torch.uint8), torch.zeros(70, dtype=torch.int64), ("a",))

    def run_the_loop(
        step=lambda model, taken: None, losses=range(1, 13), test_epoch=dict, folder="run", watching=lambda at: None, **more
    ):
        taken = []

        def new_step(model, *words):
            def take_step(batch_B, rate, images_BCHW):
                taken.append((batch_B.tolist(), rate))
                step(model, taken)
                return torch.tensor(float(losses[len(taken) - 1]))

            return take_step

        monkeypatch.setattr(loop, "new_step", new_step)
        run = PretrainParameters(**{"epochs": 3, "batch_size": 16} | more)
        (tmp_path / folder).mkdir(exist_ok=True)
        cpu = torch.device("cpu")
        history, metrics, *_ = fit(torch.nn.Linear(3, 3), None, train, run, tmp_path / folder, cpu, test_epoch, watching)
        return taken, history, metrics

    return run_the_loop


def test_an_epoch_takes_whole_batches_of_images_that_differ_in_an_order_of_its_own(fit_idly):
    orders = [[ids for ids, _ in fit_idly(seed=seed, folder=name)[0]] for seed, name in ((0, "a"), (0, "b"), (1, "c"))]
    assert {len(batch) for batch in orders[0]} == {16}
    epochs = [[image for batch in orders[0][start : start + 4] for image in batch] for start in (0, 4, 8)]
    for epoch in epochs:
        assert len(set(epoch) & set(range(70))) == 64
    assert sorted(map(sorted, epochs)) != [sorted(epochs[0])] * 3
    assert orders[0] == orders[1] != orders[2]


def test_every_step_has_the_learning_rate_of_its_place(fit_idly):
    taken, history, _ = fit_idly(warmup_epochs=1.5)
    run = PretrainParameters(epochs=3, batch_size=16, warmup_epochs=1.5)
    expected = [learning_rate(step / 4, run) for step in range(12)]
    assert [rate for _, rate in taken] == expected
    assert history["learning_rate"] == expected[3::4]  # of an epoch's last step


def test_a_single_step_of_a_warm_up_is_told_to_change_nothing(fit_idly, capsys):
    assert [rate for _, rate in fit_idly(batch_size=70, epochs=1)[0]] == [0.0]
    assert (
        "this run changes no weight: warmup_epochs is 1, so its single step has a rate of 0; set" in capsys.readouterr().out
    )
    fit_idly(batch_size=70, epochs=1, warmup_epochs=0.0, folder="other")
    assert "changes no weight" not in capsys.readouterr().out


def test_more_processes_than_images_a_step_are_refused(fit_idly, monkeypatch):
    monkeypatch.setattr(loop, "team", lambda: types.SimpleNamespace(size=17, leads=True))
    with pytest.raises(ParameterError, match="batch_size is 16: it must be at least the number of processes, 17"):
        fit_idly(batch_size=16)


def test_the_history_has_the_means_of_epochs_and_what_was_measured_after_them(fit_idly):
    measured = iter([30.0, 50.0, 40.0])
    _, history, metrics = fit_idly(test_epoch=lambda: {"test_accuracy": next(measured)})
    assert history["epoch"] == [1, 2, 3]
    assert history["train_loss"] == [2.5, 6.5, 10.5]
    assert history["test_accuracy"] == [30.0, 50.0, 40.0]
    assert metrics["train_loss"] == 10.5
    assert metrics["peak_memory_bytes"] > 0


@pytest.mark.parametrize("stops_at", [2, 4, 7])
def test_an_interrupted_run_goes_on_with_the_same_images_at_the_same_rates(fit_idly, stops_at):
    def stop(model, taken):
        first.append(taken[-1])
        if len(taken) > stops_at:
            raise KeyboardInterrupt

    whole, first = fit_idly(folder="whole")[0], []
    with pytest.raises(KeyboardInterrupt):
        fit_idly(stop, checkpoint_seconds=0.0)
    assert first[:stops_at] + fit_idly()[0] == whole


@pytest.mark.parametrize(
    ("checkpoint_seconds", "moments"), [(0.0, [divmod(step, 4) for step in range(1, 13)]), (1000.0, [(3, 0)])]
)
def test_a_checkpoint_is_saved_after_each_step_if_due_and_at_the_end(fit_idly, monkeypatch, checkpoint_seconds, moments):
    saved = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, at: saved.append((at.epoch, at.step)))
    fit_idly(checkpoint_seconds=checkpoint_seconds)
    assert saved == moments


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0])
@pytest.mark.parametrize("stops_at", [0, 2, 4, 7])
def test_training_takes_the_time_of_its_steps_whatever_else_happens(fit_idly, monkeypatch, stops_at, checkpoint_seconds):
    """Steps of 1.25 seconds; checkpoints take 100, evaluations 1000, pictures 10,000; one start may have been stopped."""
    clock, save = [5.0], Checkpoint.save
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow_save(self, at):
        clock[0] += 100
        save(self, at)

    def evaluate():
        clock[0] += 1000
        return {}

    def step(model, taken):
        if stops_at and len(taken) > stops_at:
            raise KeyboardInterrupt
        clock[0] += 1.25

    monkeypatch.setattr(Checkpoint, "save", slow_save)

    def draw(at):
        clock[0] += 1e4

    more = {"test_epoch": evaluate, "checkpoint_seconds": checkpoint_seconds, "watching": draw}
    if stops_at:
        with pytest.raises(KeyboardInterrupt):
            fit_idly(step, **more)
        stops_at, clock[0] = 0, 1e5
    _, _, metrics = fit_idly(step, **more)
    assert metrics["epoch_seconds"] == pytest.approx([5.0] * 3)
    assert metrics["train_seconds"] == pytest.approx(15.0)
    assert metrics["images_per_second"] == pytest.approx(12.8)


class Bar:
    """In place of a progress bar."""

    def __init__(self, total, initial, desc, disable):
        self.total, self.initial, self.desc, self.updates, self.told = total, initial, desc, 0, []

    def update(self):
        self.updates += 1

    def set_postfix_str(self, text):
        self.told.append(text)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.told.append("closed")


@pytest.mark.parametrize("stops_at", [0, 3, 6, 12])
def test_the_progress_bar_starts_where_the_run_was_and_ends_full(fit_idly, monkeypatch, stops_at):
    bars = []
    monkeypatch.setattr(loop, "progress", lambda **words: bars.append(Bar(**words)) or bars[-1])

    def stop(model, taken):
        if len(taken) > stops_at:
            raise KeyboardInterrupt

    if stops_at == 12:
        fit_idly()
    elif stops_at:
        with pytest.raises(KeyboardInterrupt):
            fit_idly(stop, checkpoint_seconds=0.0)
    fit_idly(checkpoint_seconds=0.0, test_epoch=lambda: {"test_loss": 7.0, "test_accuracy": 12.0})
    bar = bars[-1]
    assert (bar.total, bar.initial, bar.updates, bar.desc) == (12, stops_at, 12 - stops_at, "run")
    assert bar.told[-1] == "closed"
    assert stops_at or bar.told[:-1] == [f"train loss {mean}, test accuracy 12" for mean in (2.5, 6.5, 10.5)]


def test_the_bar_is_redrawn_once_a_second_unless_told_otherwise(monkeypatch, capsys):
    paces = []
    for told in (None, "30"):
        monkeypatch.delenv("TQDM_MININTERVAL", raising=False) if told is None else monkeypatch.setenv(
            "TQDM_MININTERVAL", told
        )
        with progress(total=10, initial=4, desc="run") as bar:
            assert (bar.total, bar.n) == (10, 4)
            paces.append(bar.mininterval)
    assert paces == [1, 30]
    assert capsys.readouterr().out.startswith("\rrun:  40%")


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0])
def test_weights_that_are_not_finite_stop_the_run(fit_idly, checkpoint_seconds):
    def spoil(model, taken):
        if len(taken) == 6:
            with torch.no_grad():
                model.bias[1] = -math.inf

    step = 6 - 4 if checkpoint_seconds == 0 else 4  # found when it would be saved: then, or after the epoch
    rate = learning_rate(1 + (step - 1) / 4, PretrainParameters(epochs=3, batch_size=16, base_lr=0.1))
    wanted = rf"sum of weights of step {step} of epoch 2 is inf at a learning rate of {rate:.2g}: lower base_lr; "
    with pytest.raises(NotFiniteError, match=wanted):
        fit_idly(spoil, base_lr=0.1, checkpoint_seconds=checkpoint_seconds)


def test_the_first_step_that_is_not_finite_is_named_with_its_rate(fit_idly):
    rate = learning_rate(1 + 2 / 4, PretrainParameters(epochs=3, batch_size=16, base_lr=0.1))
    with pytest.raises(NotFiniteError, match=rf"loss of step 3 of epoch 2 is inf at a learning rate of {rate:.2g}:"):
        fit_idly(losses=[1, 2, 3, 4, 5, 6, math.inf, math.nan], base_lr=0.1)


def test_a_measure_that_is_not_finite_stops_the_run_before_it_is_saved(fit_idly, tmp_path):
    with pytest.raises(NotFiniteError, match=r"test_loss of step 4 of epoch 1 is nan .*no checkpoint was saved yet"):
        fit_idly(test_epoch=lambda: {"test_loss": math.nan})
    assert not list((tmp_path / "run").iterdir())


def test_the_sum_of_weights_is_of_all_absolute_values():
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -4.0]]))
        model.bias.fill_(-0.5)
    assert sum_of_weights(model).tolist() == [7.5]
    assert not sum_of_weights(model).requires_grad


def test_cuda_graphs_are_announced_before_every_replay_and_otherwise_never(monkeypatch):
    asked, marks = [], []
    monkeypatch.setattr(torch, "compile", lambda function, **more: asked.append(more) or function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    plain, replayed = (compile_loss(lambda a, b: a - b, graphs=graphs) for graphs in (False, True))
    assert [plain(3, 1), plain(3, 2), len(marks)] == [2, 1, 0]
    assert [replayed(3, 1), replayed(3, 2), len(marks)] == [2, 1, 2]
    assert asked == [{}, {"mode": "reduce-overhead"}]
