"""The benchmark's tables show what was timed; an epoch of ours is a complete epoch."""

import contextlib
import dataclasses
import io
import multiprocessing
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import measure, summary
from benchmarks.__main__ import COMPARED, MORE, PEERS, TINY, contestants, main, tasks_here, training_flops
from benchmarks.contestants import EPOCH_STEPS, MODELS, Contestant, Shape, build, parameters, tune
from benchmarks.machine import machine_name
from benchmarks.measure import counted_bytes, take_turns
from mae_core import devices
from mae_core.evaluation import flops
from mae_core.study.results import read_json

ROOT = Path(__file__).parents[1]
ABOUT = {"commit": "0123456789", "device": "A processor", "versions": {"torch": "2.14.1"}}


def timing(name, precision, rates, task="pretrain"):
    who = Contestant(name, task, precision, False)
    measured = {"rates": rates, "median": sorted(rates)[len(rates) // 2], "first_seconds": 3.0, "peak_bytes": 2**30}
    return dataclasses.asdict(who) | {"label": who.label, "flops_per_image": 4e9} | measured


def limit(name, rate):
    return {"limit": name, "rates": [rate], "median": rate}


@pytest.fixture
def content():
    limits = [limit("bfloat16 matrix product", 400e9), limit("float32 matrix product", 160e9), limit("memory copy", 1e10)]
    raced = [
        timing("ours", "bfloat16", [48.0, 50.0, 52.0]),
        timing("transformers", "float32", [12.0, 12.5, 13.0]),
        timing("lightly", "bfloat16", [26.0, 25.0, 24.0]),
    ]
    return {"parts": {"pretrain": {"timings": limits + raced, "about": ABOUT}}}


def test_the_table_gives_ratios_to_ours_and_the_share_of_the_limit(content):
    text = summary.markdown(content)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    table = {row[0]: row[1:] for row in rows}
    assert list(table)[2:] == ["", "ours, bfloat16", "lightly, bfloat16", "transformers, float32"]
    assert table["pre-training"] == ["50.0 (bfloat16)", "50%", "25.0 (lightly, bfloat16)", "2.00", "12.5", "4.00"]
    by_blocks = "2.00 (1.85 – 2.17)"  # 48 ÷ 26, 50 ÷ 25, 52 ÷ 24
    assert table["lightly, bfloat16"] == ["25.0", "24.0 – 26.0", "5.12", "2.00", by_blocks, "25%", "1.0 GiB", "3 s"]
    assert table["ours, bfloat16"][3:6] == ["1.00", "1.00 (1.00 – 1.00)", "50%"]
    assert "Ours is 2.00 times as fast as the best peer, 4.00 times as fast as eager transformers in float32" in text


def test_peers_with_settings_of_ours_stand_in_a_table_of_their_own(content):
    tasks = ("pretrain", "finetune", "evaluate")
    rates = {"ours": [48.0, 50.0, 52.0], "transformers": [25.0, 20.0, 26.0], "lightly": [40.0, 40.0, 40.0]}
    raced = [timing(name, "bfloat16", rates[name], task) for task in tasks for name in rates]
    del raced[-2]  # transformers, evaluation
    limits = content["parts"]["pretrain"]["timings"][:3]
    content["parts"]["tuned"] = {"timings": limits + raced, "about": ABOUT, "seconds": 4.0}
    text = summary.markdown(content)
    transformers, lightly = "25.0 | 2.00 | 2.00 (1.92 – 2.50)", "40.0 | 1.25 | 1.25 (1.20 – 1.30)"
    for title in ("pre-training", "fine-tuning"):
        assert f"| {title} | 50.0 | {transformers} | {lightly} |" in text
    assert f"| evaluation | 50.0 | – | – | – | {lightly} |" in text
    assert "All bfloat16, not compiled. A processor" in text
    assert "Median of 1 block of about 4 s, one step at least" in text


def test_against_the_clock_there_need_be_no_float32_and_the_share_of_copying_is_told(content):
    part = content["parts"]["pretrain"]
    part["timings"] = [t for t in part["timings"] if t.get("name") != "transformers"]
    for timing in part["timings"][3:]:
        timing["bytes_per_image"] = 1e8
    part["left_out"] = {"transformers, bfloat16": "it was not ready in time"}
    text = summary.markdown(content)
    assert "| pre-training | 50.0 (bfloat16) | 50% | 25.0 (lightly, bfloat16) | 2.00 | – | – |" in text
    assert "| of the limit | of copying | peak memory |" in text
    assert "| 50% | 50% | 1.0 GiB |" in text
    assert "| 25% | 25% | 1.0 GiB |" in text
    assert "Left out: transformers, bfloat16 (it was not ready in time)." in text
    assert summary.in_a_line(part) == (
        "50 images/s (bfloat16), 50% of the matrix limit, 50% of copying, 1.0 GiB, 2.00 times lightly, bfloat16"
    )
    part["timings"] = part["timings"][:-1]
    assert "| pre-training | 50.0 (bfloat16) | 50% | – | – | – | – |" in summary.markdown(content)


def test_every_operation_that_moves_data_is_counted():
    numbers = torch.ones(10)
    assert counted_bytes(lambda: numbers.view(2, 5).t(), False) == 0
    assert counted_bytes(lambda: numbers + 1, False) == 2 * 40
    assert counted_bytes(lambda: numbers.mul_(torch.ones(1).expand(10)), False) == 40 + 40 + 4 + 4  # also makes the one


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_bytes_of_compiled_kernels_are_counted(monkeypatch):
    from torch._inductor import compile_fx, graph, metrics

    monkeypatch.setattr(graph.GraphLowering, "count_bytes", graph.GraphLowering.count_bytes)  # restored afterwards
    level = compile_fx.inductor_metrics_log.level
    new = time.time()  # a constant that no cache knows
    fused, numbers = torch.compile(lambda x: (x + 1).sin() * new), torch.ones(1000)
    try:
        assert counted_bytes(lambda: fused(numbers), True) == 2 * 4000  # one kernel: read once, written once
    finally:
        compile_fx.inductor_metrics_log.setLevel(level)
        metrics.reset()


def test_against_the_clock_who_fails_or_is_late_is_left_out():
    whos = [Contestant("nobody", "pretrain", "float32", False)]
    (nobody,) = take_turns(whos, 2, 0.05, until=time.monotonic() + 120)
    assert (nobody.rates, nobody.error) == ([], "KeyError: ('nobody', 'pretrain')")
    (late,) = take_turns(["memory copy"], 2, 0.05, until=time.monotonic() + 0.1)
    assert late.error == "it was not ready in time"


@pytest.fixture
def race(monkeypatch):
    """A function that lets stand-ins race against the clock: by name, the seconds of their start and of their blocks."""
    monkeypatch.setattr(measure, "processes", multiprocessing.get_context("fork"))  # with the function below

    def race(pauses, seconds, at_once=3):
        def serve(who, seconds, counted, connection):
            start, *blocks = pauses[who.name]
            time.sleep(start)
            connection.send((start, 0))
            for pause in blocks:
                connection.recv()
                time.sleep(pause)
                connection.send((10.0, 2**20))
            time.sleep(60)

        monkeypatch.setattr(measure, "serve", serve)
        whos = [Contestant(name, "pretrain", "float32", False) for name in pauses]
        timings = take_turns(whos, 5, 0.05, until=time.monotonic() + seconds, at_once=at_once)
        return {timing.who.name: (len(timing.rates), timing.peak_bytes, timing.error) for timing in timings}

    return race


def test_a_round_in_which_the_time_is_up_is_dropped_and_its_contestants_stay(race):
    found = race({"limit": (0, 0, 0, 0), "ours": (0, 0, 0, 60), "peer": (0, 0, 0, 0)}, seconds=2)
    assert found == dict.fromkeys(("limit", "ours", "peer"), (2, 2**20, ""))


def test_in_the_first_round_whoever_has_a_rate_stays(race):
    found = race({"limit": (0, 0), "ours": (0, 0), "late": (0, 60), "never asked": (0, 0)}, seconds=2, at_once=4)
    why = "the time was up before the end of its first block"
    assert found == dict.fromkeys(("limit", "ours"), (1, 2**20, "")) | dict.fromkeys(("late", "never asked"), (0, 0, why))


def test_one_slow_start_does_not_hold_up_the_others(race):
    quick = (0, 0, 0, 0, 0, 0)
    found = race({"a": quick, "slow": (60, 0), "b": quick, "c": quick, "d": quick}, seconds=4, at_once=2)
    assert found.pop("slow") == (0, 0, "it was not ready in time")
    assert found == dict.fromkeys("abcd", (5, 2**20, ""))


@pytest.mark.parametrize("name", ["ours", *PEERS])
@pytest.mark.parametrize("task", COMPARED)
def test_every_contestant_takes_a_step(name, task):
    step = build(Contestant(name, task, "float32", False, TINY, threads=1, device="cpu"))
    for _ in range(2):
        step()


class Spy(TorchDispatchMode):
    """Counts fused attention, and records the precision of layer norms."""

    def __init__(self):
        super().__init__()
        self.fused, self.norms = 0, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.fused += "scaled_dot_product" in str(operation)
        if "layer_norm" in str(operation) and "backward" not in str(operation):
            self.norms.add(args[0].dtype)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("task", COMPARED)
def test_a_tuned_peer_runs_with_settings_of_ours(monkeypatch, name, task):
    kept: list[int] = []
    monkeypatch.setattr(devices, "set_up", lambda threads=0: kept.append(threads))
    seen = {}
    for tuned in (False, True):
        step = build(Contestant(name, task, "bfloat16", False, TINY, threads=1, device="cpu", tuned=tuned))
        assert len(kept) == tuned
        with Spy() as seen[tuned]:
            step()
    n_attentions = TINY.depth + TINY.decoder_depth * (task == "pretrain")
    assert seen[False].fused == n_attentions * (1 if task == "evaluate" else 2)  # the backward pass too
    assert seen[True].fused == (n_attentions if task == "evaluate" else 0)
    assert seen[False].norms == {torch.float32}
    assert seen[True].norms == {torch.bfloat16 if task == "evaluate" else torch.float32}


def test_who_takes_part(monkeypatch):
    monkeypatch.setattr(devices, "choose_precision", lambda name, device: torch.bfloat16)
    tuned = [who for who in contestants("tuned", TINY, tiny=True) if isinstance(who, Contestant)]
    assert [(who.task, who.name, who.tuned) for who in tuned] == [
        (task, name, name != "ours") for task in COMPARED for name in ("ours", *PEERS)
    ]
    for task, modes in (("pretrain", 12), ("finetune", 12), ("evaluate", 6)):
        raced = [who for who in contestants(task, TINY, tiny=True) if isinstance(who, Contestant)]
        assert len(set(raced)) == modes
        assert not any(who.tuned for who in raced)


def test_flops_are_those_of_the_published_model():
    of = {task: training_flops(Contestant("ours", task, "float32", False)) for task in (*COMPARED, "mask tokens")}
    assert of["finetune"] == 3 * of["evaluate"]
    tokens, width, depth = 257, 192, 12
    products = tokens * (12 * width**2 + 2 * tokens * width) * 2  # of one block, matrix products only
    assert of["evaluate"] == pytest.approx(depth * products, rel=0.02)
    visible = 65  # a quarter of the patches plus the class token
    fewer = visible * (12 * width**2 + 2 * visible * width) * 2
    assert of["pretrain"] == pytest.approx(3 * (depth * fewer + 4 * products), rel=0.02)
    assert of["mask tokens"] == pytest.approx(3 * (depth + 4) * products, rel=0.02)


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_a_peer_does_the_same_work_as_ours(monkeypatch, name, task):
    """With explicit attention: torch's counter does not count the CPU's fused attention."""
    monkeypatch.setattr(devices, "set_up", lambda threads=0: None)
    model = MODELS[name, task](Shape())
    tune(model, Contestant(name, "finetune", "float32", False, device="cpu"))
    run = parameters(Contestant("ours", "pretrain" if task == "pretrain" else "finetune", "float32", False))
    ours = flops.of_pretraining(run) if task == "pretrain" else flops.of_classifier(run, n_classes=10)
    assert flops.count(model, torch.rand(1, 3, 32, 32)) == pytest.approx(ours, rel=0.1)


@pytest.mark.slow
def test_the_command_writes_what_it_measured(monkeypatch, tmp_path, capsys):
    words = ["benchmarks", "--tiny", "--tasks", "ours", "--blocks", "1", "--seconds", "0.05", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    (path,) = tmp_path.glob("*.json")
    part = read_json(path)["parts"]["ours"]
    raced = [timing for timing in part["timings"] if "task" in timing]
    assert [timing["task"] for timing in raced] == ["pretrain", "mask tokens", "epoch", "steps alone"]
    assert all(len(timing["rates"]) == 1 and timing["peak_bytes"] > 2**20 for timing in part["timings"])
    assert {"batch", "random", "block", "grid"} == set(part["masks"])
    assert path.stem == machine_name() + "-tiny"
    assert "**Ours in detail**" in path.with_suffix(".md").read_text(encoding="utf-8")
    assert "**Ours in detail**" in capsys.readouterr().out


def test_one_process_or_several_are_compared_on_a_cpu_alone(monkeypatch, capsys):
    monkeypatch.setattr(devices, "choose_device", lambda name="auto": torch.device("cpu"))
    assert tasks_here() == [*COMPARED, *MORE]
    monkeypatch.setattr(devices, "choose_device", lambda name="auto": torch.device("cuda"))
    assert tasks_here() == [task for task in (*COMPARED, *MORE) if task != "processes"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--tasks", "processes"])
    with pytest.raises(SystemExit):
        main()
    assert "processes is for a CPU: set CUDA_VISIBLE_DEVICES to nothing" in capsys.readouterr().err


@pytest.mark.skipif(devices.choose_device().type != "cpu", reason="they race on a CPU alone")
@pytest.mark.slow
def test_two_processes_race_one_of_two_threads(monkeypatch, tmp_path):
    words = ["benchmarks", "--tiny", "--tasks", "processes", "--blocks", "1", "--seconds", "0.05", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    main()
    (path,) = tmp_path.glob("*.json")
    raced = [timing for timing in read_json(path)["parts"]["processes"]["timings"] if "task" in timing]
    assert [(who["task"], who["processes"], who["threads"]) for who in raced] == [
        ("pretrain", 1, 2), ("pretrain", 2, 1), ("finetune", 1, 2), ("finetune", 2, 1),
    ]  # fmt: skip
    assert all(who["rates"][0] > 0 for who in raced)
    (table,) = tmp_path.glob("*.md")
    assert "| fine-tuning |" in table.read_text("utf-8")


def test_where_the_hardware_has_no_bfloat16_it_does_not_take_part(monkeypatch, content):
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(devices, "choose_device", lambda name="auto": torch.device("cpu"))
    for task in (*COMPARED, *MORE):
        whos = list(contestants(task, TINY, tiny=True))
        assert whos[:2] == ["float32 matrix product", "memory copy"]
        assert {who.precision for who in whos[2:]} == {"float32"}
    assert "bfloat16" not in machine_name()
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    assert next(contestants("pretrain", TINY, tiny=True)) == "bfloat16 matrix product"
    for tiles, end in ((False, "-bfloat16"), (True, "-bfloat16-tiles")):
        monkeypatch.setattr(devices, "cpu_has_tiles", lambda tiles=tiles: tiles)
        assert machine_name().endswith(end)

    part = content["parts"]["pretrain"]
    assert "did not take part" not in summary.limits_sentence(part)
    assert "400 in bfloat16 and 160 in float32 (GFLOP/s)" in summary.limits_sentence(part)
    part["timings"] = [timing for timing in part["timings"] if "bfloat16" not in timing.get("limit", "")]
    assert "matrix products 160 in float32 (GFLOP/s)" in summary.limits_sentence(part)
    assert "bfloat16 did not take part" in summary.limits_sentence(part)


def test_it_is_written_as_json_table_and_figure(content, tmp_path):
    summary.write(tmp_path / "machine", content)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".svg"}
    assert re.search(r"lightly, bfloat16", (tmp_path / "machine.md").read_text(encoding="utf-8"))


def test_a_contest_has_a_rate_for_every_block():
    (copied,) = take_turns(["memory copy"], blocks=2, seconds=0.05, tell=lambda line: None)
    assert len(copied.rates) == 2
    assert min(copied.rates) > 1e8


def test_a_contestant_that_fails_is_named():
    with pytest.raises(RuntimeError, match="nobody"):
        take_turns([Contestant("nobody", "pretrain", "float32", False)], blocks=1, seconds=0.05)


def test_an_epoch_trains_each_time_that_it_is_asked_for():
    shape = Shape(patch_size=8, width=24, depth=1, heads=2, decoder_depth=1, batch_size=32)
    epoch = build(Contestant("ours", "epoch", "float32", False, shape, threads=1, device="cpu"))
    said = []
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            epoch()
        said.append(out.getvalue())
    assert all(f" 0/{EPOCH_STEPS}" in text for text in said)


PUBLISHED = sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("*.json"))


def test_there_are_published_results():
    assert PUBLISHED


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_docs_show_the_published_results(path):
    content = read_json(path)
    raced = set(COMPARED) & content["parts"].keys()
    rows = summary.overview(content) if raced else []
    assert len(rows) > 2 or not raced
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text(encoding="utf-8")
    assert set(rows) <= set(page.splitlines())
    assert f"(../benchmarks/results/{path.stem}.md)" in page
    if "processes" in content["parts"]:
        told = page.split("## One process or several")[1].split("\n## ")[0]
        rates = [f"{timing['median']:,.1f}" for timing in summary.racers(content["parts"]["processes"])]
        assert all(rate in told for rate in rates)
    settings = page.split("## How much of the lead is settings")[1].split("\n## ")[0]
    tuned = summary.tuned(content["parts"]["tuned"]) if "tuned" in content["parts"] else []
    for told in re.findall(r"\| (\d\.\d\d) \| \d\.\d\d \(", "\n".join(tuned)):
        assert told in settings
    assert path.with_suffix(".md").read_text(encoding="utf-8") == summary.markdown(content)


def cells(text):
    """The rows of a Markdown table, without the line under its head."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [rows[0], *rows[2:]]


def test_the_readmes_table_of_speed_is_that_of_the_results():
    """The race on a GPU has no file yet: its rates stand in the docs alone."""
    content = read_json(ROOT / "benchmarks" / "results" / "amd-epyc-2-threads-avx512-bfloat16.json")
    expected = [
        [task, own.removesuffix(" (bfloat16)"), peer.replace(", bfloat16)", ")"), ratio]
        for task, own, _, peer, ratio, *_ in cells("\n".join(summary.overview(content)))[1:]
    ]
    docs = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8").split("### One NVIDIA H200, by hand\n")[1]
    modes, *by_hand = cells(docs.split("\n\n- ")[0])
    for task, own, *others in by_hand:
        rates = {mode.split(",")[0]: int(rate.replace(",", "")) for mode, rate in zip(modes[2:], others, strict=True)
                 if mode.endswith(", compiled") and rate[:1].isdigit()}  # fmt: skip
        best = max(rates, key=rates.get)
        ratio = int(own.replace(",", "")) / rates[best]
        expected.append([task, own, f"{rates[best]:,} ({best})", f"{ratio:.2f}"])

    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Speed\n")[1].split("\n## ")[0]
    _, *told = cells(section)
    assert [row[1:] for row in told] == expected
    machines = ["two cores of an AMD EPYC, bfloat16, batch 128", "", "", "one NVIDIA H200, bfloat16, all compiled", ""]
    assert [row[0] for row in told] == machines
    assert {timing["shape"]["batch_size"] for timing in summary.racers(content["parts"]["pretrain"])} == {128}
