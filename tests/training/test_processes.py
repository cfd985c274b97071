"""Several processes train one run: the same losses but for rounding, one set of results, and no run that waits forever."""

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import yaml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mae_core.data.images import Split
from mae_core.errors import NotFiniteError, ParameterError, ProcessError, StoppedError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import read_json
from mae_core.study.tensors import load_tensors
from mae_core.training import loop, objective, processes
from mae_core.training.optimizer import new_optimizer
from mae_core.training.plan import choose_plan
from mae_core.training.processes import Pulse, Team
from mae_core.training.replicas import Replicas
from mae_core.training.runs import finetune, pretrain

ROOT = Path(__file__).parents[2]
ONE_STEP = {"train_images": 64, "batch_size": 64, "precision": "float32", "augment": "crop-flip", "checkpoint_seconds": 0.0}


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_parts_of_all_processes_are_the_batch(monkeypatch, size):
    """Images, masks and weights of the gradients' mean; drawn by each process alone, put together here."""
    run = PretrainParameters(width=24, depth=1, decoder_width=24, batch_size=10, augment="crop-flip", precision="float32")
    train = Split(torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8), torch.zeros(20, dtype=torch.int64), ())
    cpu, seen, weights = torch.device("cpu"), [], []
    monkeypatch.setattr(Team, "average", lambda self, tensors, weight: weights.append(weight))
    real = Replicas.compute_gradients
    monkeypatch.setattr(Replicas, "compute_gradients", lambda *words: seen.append(words[1:3]) or real(*words))

    def draw(team):
        torch.manual_seed(0)
        model = MaskedAutoencoder(run.model)
        plan, optimizer = choose_plan(run, cpu, team.size), new_optimizer(model, run)
        generator = torch.Generator().manual_seed(1)
        loop.new_step(model, objective.reconstruction(run), train, run, plan, optimizer, generator, team)(
            torch.arange(10), 0.0
        )
        return seen.pop()

    images_BCHW, mask = draw(Team())
    parts = [draw(Team(rank, size)) for rank in range(size)]
    assert torch.cat([images for images, _ in parts]).equal(images_BCHW)
    for name in ("ids_shuffle_BN", "ids_restore_BN"):
        assert torch.cat([getattr(part, name) for _, part in parts]).equal(getattr(mask, name))
    lengths = [len(images) for images, _ in parts]
    assert max(lengths) - min(lengths) <= 1
    assert weights[0] == 1
    assert weights[1:] == [length / 10 for length in lengths]


@pytest.mark.parametrize("stage", ["pretrain", pytest.param("finetune", marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_losses(tiny, capfd, stage):
    kind, train = {"pretrain": (PretrainParameters, pretrain), "finetune": (FinetuneParameters, finetune)}[stage]
    losses, weights = {}, {}
    numbers = (1, 2, 4) if stage == "pretrain" else (1, 2)
    for n in numbers:
        run = kind.check({**tiny, **ONE_STEP, "case": f"n{n}", "epochs": 6, "processes": n})
        model = train(run)
        losses[n] = read_json(run.folder / stage / "history.json")["train_loss"]  # one step an epoch
        weights[n] = load_tensors(run.folder / stage / "weights.safetensors")[0]
        assert all(weights[n][name].equal(tensor) for name, tensor in model.state_dict().items())
    printed = capfd.readouterr().out
    assert printed.count("cpu in float32") == len(numbers), "one process prints"
    assert f"{numbers[-1]} processes, each with a part of the batch" in printed
    assert losses[1][-1] < losses[1][0]
    for n in numbers[1:]:
        assert losses[n] == pytest.approx(losses[1], rel=1e-5)
        for name, tensor in weights[n].items():
            torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


SCRIPT = """
import json, sys
from mae_core import PretrainParameters, pretrain
from mae_core.errors import Explained
try:
    pretrain(PretrainParameters.check(json.loads(sys.argv[1])))
except Explained as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@contextlib.contextmanager
def started(run):
    """A notebook's process that trains with several others, once their first checkpoint is there; and these others."""
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(run.flat())], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    others = []
    try:
        end = time.monotonic() + 120
        while not (run.folder / "pretrain" / "checkpoint.safetensors").exists():
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.05)
        others = psutil.Process(child.pid).children()
        others.sort(key=lambda process: int(process.environ()["RANK"]))
        yield child, others
    finally:
        for process in (child, *others):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()
        child.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_however_it_ends_one_process_goes_on(tiny, how):
    whole, cut = (
        PretrainParameters.check({**tiny, **ONE_STEP, "case": case, "epochs": 200, "processes": n})
        for case, n in (("whole", 1), ("cut", 2))
    )
    pretrain(whole)
    with started(cut) as (child, others):
        assert len(others) == 2
        others[1].kill() if how == "killed" else child.send_signal(signal.SIGTERM)
        told = child.communicate(timeout=60)[1].strip().splitlines()
    expected = "ProcessError: process 2 of 2 was ended by SIGKILL, and" if how == "killed" else "StoppedError: stopped: run"
    assert len(told) == 1
    assert told[0].startswith(expected)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in others)
    epoch = load_tensors(cut.folder / "pretrain" / "checkpoint.safetensors")[1]["epoch"]
    assert 0 < epoch < 200, "it ended before it was stopped"
    pretrain(cut.model_copy(update={"processes": 1}))
    losses = [read_json(run.folder / "pretrain" / "history.json")["train_loss"] for run in (whole, cut)]
    assert losses[1][:20] == pytest.approx(losses[0][:20], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # rounding grows over 200 steps


SHARE = """
import sys
import torch
import torch.distributed as dist
from mae_core.training.processes import Team

def refuse(event, words):
    if event == "pickle.find_class":
        raise RuntimeError(f"it unpickles {words}")

rank, place = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
sys.addaudithook(refuse)
values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
sent = {"float32": values, "bfloat16": values.bfloat16(), "uint8": values.byte()}
sent |= {"number": torch.tensor(7), "empty": torch.zeros(0, dtype=torch.int64)}
note = {"epoch": 3, "history": {"train_loss": [0.1, 1e-9]}, "made_of": {"code": "ü"}}
team = Team(rank, 2)
assert team.share(None) is None
tensors, about = team.share(None if rank else (sent, note))
assert about == note
assert {name: tensor.dtype for name, tensor in tensors.items()} == {name: tensor.dtype for name, tensor in sent.items()}
assert all(tensor.equal(sent[name]) for name, tensor in tensors.items())
dist.destroy_process_group()
"""


def test_a_checkpoint_is_sent_to_the_other_processes_and_nothing_is_unpickled(tmp_path):
    words = [sys.executable, "-c", SHARE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    children = [
        subprocess.Popen([*words, str(rank), tmp_path / "store"], stderr=subprocess.PIPE, encoding="utf-8", env=environment)
        for rank in range(2)
    ]
    told = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], told


def test_a_run_of_one_process_goes_on_with_two(tiny):
    def stop(at, model, test):
        if at.epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    whole, cut = (PretrainParameters.check({**tiny, **ONE_STEP, "case": case, "epochs": 6}) for case in ("whole", "cut"))
    pretrain(whole)
    with pytest.raises(StoppedError, match="stopped after epoch"):
        pretrain(cut, watch=stop)
    pretrain(cut.model_copy(update={"processes": 2}))
    first, then = (read_json(run.folder / "pretrain" / "history.json")["train_loss"] for run in (whole, cut))
    assert then[:3] == first[:3]
    assert then == pytest.approx(first, rel=1e-5)


def test_their_errors_are_told_as_of_one_process(tiny):
    run = PretrainParameters.check({**tiny, **ONE_STEP, "processes": 2, "train_images": 32})
    with pytest.raises(ParameterError, match="batch_size is 64: there are only 32 training images"):
        pretrain(run)


def test_more_processes_than_images_a_step_are_refused():
    with pytest.raises(ParameterError, match="processes is 9: it must be at most batch_size, which is 8"):
        PretrainParameters.check({"batch_size": 8, "processes": 9})


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(processes.gpus, "visible", lambda: {"0": "GPU-a", "1": "GPU-b"})
    with pytest.raises(ParameterError, match="processes is 3: each needs a GPU of its own, and there are 2 here"):
        processes.train(PretrainParameters(processes=3), "pretrain")


def test_processes_on_an_apple_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "choose_device", lambda device: torch.device("mps"))
    with pytest.raises(ParameterError, match="processes is 2: an Apple GPU trains in one process; set processes: 1, or"):
        processes.train(PretrainParameters(processes=2), "pretrain")


def test_processes_wait_for_the_first_one_as_long_as_it_lives(monkeypatch):
    """torch's own patience is 30 minutes: a long evaluation by the first process would end the run."""
    given = {}
    store = types.SimpleNamespace(clone=lambda: types.SimpleNamespace(set=lambda *words: None))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(processes, "started", lambda: True)
    monkeypatch.setattr(processes.dist, "rendezvous", lambda url: iter([(store, 0, 2)]))
    monkeypatch.setattr(processes.dist, "init_process_group", lambda kind, **more: given.update(more))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(processes.Pulse, "start", lambda self: None)
    monkeypatch.setattr(processes.Pulse, "end", lambda self: None)
    with processes.joined(torch.device("cpu")):
        assert given["timeout"] >= datetime.timedelta(days=7)


@pytest.mark.slow
def test_torchrun_starts_a_run_of_a_study(tiny, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    content = {"study": "small", "seeds": [0], "shared": {**tiny, "batch_size": 64}, "cases": {"random-75": {}}}
    content["pretrain"] = {"epochs": content["shared"].pop("epochs")}
    Path("small.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["--standalone", "--nproc-per-node", "2", "-m", "mae_core", "train", "small.yaml", "random-75", "0", "pretrain"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes, each with a part of the batch") == 1
    assert Path("outputs/small/random-75/seed0/pretrain/metrics.json").exists()


class Ended(BaseException):
    """Instead of the process's end."""


@pytest.fixture
def pulse(monkeypatch):
    """The pulse of the first of two processes, quickened, with what it does instead of ending this process."""
    done = []
    monkeypatch.setattr(processes, "BEAT", 0.02)
    monkeypatch.setattr(processes, "SILENCE", 0.4)

    def end(code):
        done.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(os, "kill", lambda pid, number: done.append((pid, number)))
    monkeypatch.setattr(threading, "excepthook", lambda about: None)
    store = dist.HashStore()
    Pulse(store, Team(1, 2))  # never started: its process hangs from the start
    store.set("process 1", "1234 here")
    made = Pulse(store, Team(0, 2))
    made.here = "here"
    made.start()
    yield made, done
    made.over.set()
    made.join()


def beat(store, seconds):
    """What the second process writes, for so long."""
    for count in range(int(seconds / 0.02)):
        store.set("pulse 1", str(count))
        time.sleep(0.02)


def test_a_process_that_hangs_is_ended_and_ends_the_others(pulse, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    made, done = pulse
    beat(made.store, 1.0)
    assert not done
    made.join(5)
    assert done == [(1234, signal.SIGKILL), 1]
    assert "ProcessError: process 2 of 2 has not answered for" in (tmp_path / "error.json").read_text("utf-8")


def test_a_process_that_hangs_from_the_start_is_noticed_too(pulse):
    made, done = pulse
    made.join(5)
    assert done == [(1234, signal.SIGKILL), 1]


def test_a_process_that_has_ended_in_order_is_not_missed(pulse):
    made, done = pulse
    made.store.set("pulse 1", "ended")
    time.sleep(1.0)
    assert made.is_alive()
    assert not done


def test_the_first_process_stops_when_another_one_asks(pulse):
    made, done = pulse
    made.store.set("stop", "1")
    beat(made.store, 0.2)
    assert (os.getpid(), signal.SIGTERM) in done


def failed(rank, exitcode, message=""):
    failure = ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=exitcode, error_file="")
    if message:
        failure.message = {"message": message, "extraInfo": {}}
    return failure


@pytest.mark.parametrize(
    ("failures", "kind", "told"),
    [
        (
            {0: (1, "RuntimeError: Connection closed by peer"), 1: (-9, "")},
            ProcessError,
            "process 2 of 4 was ended by SIGKILL",
        ),
        ({0: (1, "RuntimeError: x"), 2: (1, "NotFiniteError: lower base_lr")}, NotFiniteError, "^lower base_lr$"),
        ({0: (1, "StoppedError: stopped"), 1: (-9, "")}, ProcessError, "process 2 of 4 was ended by SIGKILL"),
        ({0: (1, "StoppedError: stopped"), 1: (-15, "")}, StoppedError, "^stopped$"),
        ({3: (1, "KeyError: 'x'")}, RuntimeError, "process 4 of 4 failed: KeyError: 'x'"),
    ],
)
def test_the_cause_is_told_and_not_what_follows_from_it(failures, kind, told):
    error = ChildFailedError("train", {rank: failed(rank, *about) for rank, about in failures.items()})
    found = processes.reason(error, 4)
    assert type(found) is kind
    with pytest.raises(kind, match=told):
        raise found
