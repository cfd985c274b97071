import math
import signal

import pytest
import torch
from tqdm import tqdm

from mae_core.errors import NotFiniteError, ParameterError, StoppedError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import read_json
from mae_core.study.tensors import load_tensors
from mae_core.training import objective
from mae_core.training.loop import learning_rate, new_optimizer
from mae_core.training.runs import finetune, pretrain


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


def test_only_matrices_decay():
    model = MaskedAutoencoder(PretrainParameters().model)
    decayed, others = new_optimizer(model, PretrainParameters(weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert len(decayed["params"]) == sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


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
    last = 512 // run.batch_size

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
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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


def test_a_batch_larger_than_the_data_is_refused(tiny):
    with pytest.raises(ParameterError, match="batch_size is 1024: there are only 512 training images"):
        pretrain(PretrainParameters.check({**tiny, "batch_size": 1024}))
