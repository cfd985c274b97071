import gc
import mmap
import os
import platform
import re
import time
from pathlib import Path

import pytest
import torch

from mae_core import devices
from mae_core.errors import ParameterError


def test_auto_takes_what_is_there():
    device = devices.choose_device("auto")
    if torch.cuda.is_available():
        assert device.type == "cuda"
    elif torch.backends.mps.is_available():
        assert device.type == "mps"
    else:
        assert device.type == "cpu"
    assert devices.choose_device("cpu").type == "cpu"


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert devices.choose_precision("float32", cpu) == torch.float32
    assert devices.choose_precision("bfloat16", cpu) == torch.bfloat16
    assert devices.choose_precision("auto", torch.device("mps")) == torch.float32


AMD, INTEL = "AuthenticAMD", "GenuineIntel"


@pytest.mark.parametrize(
    ("maker", "instructions", "fast"),
    [
        (AMD, {"avx512_f"}, False),
        (AMD, {"avx512_bf16"}, True),  # Zen 4
        (AMD, {"avx512_bf16", "avx512_fp16"}, True),
        (INTEL, {"avx512_bf16"}, True),  # Cooper Lake
        (INTEL, {"avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"}, True),  # Sapphire Rapids
        (INTEL, {"avx512_bf16", "avx512_fp16"}, False),  # the same, with its tiles hidden
        ("", {"bf16"}, True),  # an ARM processor
        ("", set(), False),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_is_known_to_be_fast(maker, instructions, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))
    monkeypatch.setattr(devices, "cpu_fact", lambda key: maker)
    assert devices.cpu_has_bfloat16() == fast
    assert devices.choose_precision("auto", torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)


def test_tiles_are_what_the_processor_says():
    told = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not told.exists():
        pytest.skip("no /proc/cpuinfo of an x86 processor")
    (flags,) = set(re.findall(r"^flags\s*: (.*)$", told.read_text(encoding="utf-8"), re.MULTILINE))
    assert devices.cpu_has_tiles() == ("amx_bf16" in flags.split())


def test_the_chosen_precision_is_not_the_slower_one_on_this_machine():
    times = {torch.float32: [], torch.bfloat16: []}
    operands = {precision: torch.randn(2, 1024, 1024).to(precision) for precision in times}
    for _ in range(15):  # by turns, so that other work on the machine slows both
        for precision, (a, b) in operands.items():
            start = time.perf_counter()
            a @ b
            times[precision].append(time.perf_counter() - start)
    bfloat16_speed = min(times[torch.float32]) / min(times[torch.bfloat16])
    if 0.8 < bfloat16_speed < 1.25:
        pytest.skip(f"bfloat16 is {bfloat16_speed:.2f} times as fast as float32: either is right")
    expected = torch.bfloat16 if bfloat16_speed > 1 else torch.float32
    assert devices.choose_precision("auto", torch.device("cpu")) == expected


def test_a_cast_leaves_the_model_as_it_is():
    model = torch.nn.Linear(4, 4)
    assert devices.cast(model, torch.float32) is model
    assert devices.cast(model, torch.bfloat16)(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32


def test_what_is_loaded_by_the_first_call_stays():
    gc.unfreeze()
    devices.set_up()
    frozen = gc.get_freeze_count()
    assert frozen > 10_000
    devices.set_up()  # as in a notebook's second run: objects of the first can still be collected
    assert abs(gc.get_freeze_count() - frozen) < 1000  # frozen objects may have ended meanwhile


def test_the_order_of_additions_is_fixed_on_request():
    try:
        devices.set_up(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()  # fused attention heeds only the strict form
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
        devices.set_up()
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_memory_and_name_are_told():
    cpu = torch.device("cpu")
    devices.reset_peak_memory(cpu)
    before = devices.peak_memory(cpu)
    assert before > 2**20
    with mmap.mmap(-1, 2**28) as block:  # fresh pages, which torch's freed memory cannot provide
        for start in range(0, 2**28, mmap.PAGESIZE):
            block[start] = 1
        assert devices.peak_memory(cpu) >= before + 2**27
    assert "thread" in devices.describe(cpu)
    with pytest.raises(ParameterError, match=r"device is '(mps|cuda)': .* can use; set device: auto or cpu$"):
        devices.choose_device("cuda" if not torch.cuda.is_available() else "mps")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries return freed memory by themselves")
def test_memory_that_an_earlier_run_has_freed_is_not_of_the_next():
    cpu = torch.device("cpu")
    devices.set_up()  # keeps what is freed
    kept = [torch.ones(2**18) for _ in range(2**8)]  # 256 MiB
    devices.reset_peak_memory(cpu)
    before = devices.peak_memory(cpu)
    del kept
    assert devices.peak_memory(cpu) >= before
    devices.reset_peak_memory(cpu)
    assert devices.peak_memory(cpu) < before - 2**27


def test_a_run_without_a_number_of_threads_has_them_all_again(monkeypatch):
    monkeypatch.setattr(devices, "DEFAULT_THREADS", 2)
    devices.set_up(1)
    assert torch.get_num_threads() == 1
    devices.set_up()
    assert torch.get_num_threads() == 2


def test_a_system_that_does_not_tell_a_processs_cores_has_all_of_the_machine(monkeypatch):
    assert devices.n_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert devices.n_cores() == os.cpu_count()


GROUPS = {  # what /proc/self/cgroup says -> the groups below /sys/fs/cgroup: limit, in use, cache of files
    "0::/\n": {"": ("1000", "300", "100")},
    "0::/slurm/job_7/step_0\n": {"slurm": ("max", "900", "0"), "slurm/job_7": ("1000", "300", "100")},
    "0::/docker/abc\n": {"": ("1000", "300", "100")},  # a container that sees its own group as the root
    "0::/a/b\n": {"a": ("1000", "300", "100"), "a/b": ("5000", "200", "0")},
    "3:cpu,cpuacct:/x\n9:memory:/slurm/job_7\n": {
        "memory": (str(2**63), "9", "0"),
        "memory/slurm/job_7": ("1000", "300", "100"),
    },
}


@pytest.mark.parametrize("told", GROUPS)
def test_the_limit_of_a_control_group_above_this_process_counts(tmp_path, told):
    old = "memory" in told
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    for group, (limit, used, cache) in GROUPS[told].items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        counted = f"file 7\n{'total_' * old}inactive_file {cache}\n"
        for name, content in zip((*names, "memory.stat"), (limit, used, counted), strict=True):
            (tmp_path / group / name).write_text(content, encoding="utf-8")
    (tmp_path / "cgroup").write_text(told, encoding="utf-8")
    assert min(devices.left_in_groups(tmp_path / "cgroup", tmp_path)) == 800


def test_without_control_groups_the_machine_is_the_limit(tmp_path):
    assert list(devices.left_in_groups(tmp_path / "none", tmp_path)) == []


def test_the_processes_of_a_run_share_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr(devices, "left_in_groups", lambda: [8000])
    cpu = torch.device("cpu")
    assert devices.available_memory(cpu) == 8000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert devices.available_memory(cpu) == 2000
