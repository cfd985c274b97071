"""The machine: device, precision, threads, memory."""

import contextlib
import copy
import ctypes
import gc
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import nn

from mae_core.errors import DeviceMemoryError, Explained, ParameterError

# torch reads this once, at the process's first matrix product on CUDA: a later run may want the same bits again.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
DEFAULT_THREADS = torch.get_num_threads()  # torch's own choice for this machine, if nobody has set another yet


def choose_device(name: str = "auto") -> torch.device:
    """The device to train on: ``cpu``, ``cuda``, ``mps``, or with ``auto`` the best available.

    Raises:
        ParameterError: if the device is not available on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise ParameterError(
            f"device is {name!r}: this machine has none that torch {torch.__version__} can use; set device: auto or cpu"
        )
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of matrix products; ``auto`` chooses bfloat16 if the hardware multiplies it faster than float32."""
    if name == "auto":
        on_cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        fast = on_cuda or (device.type == "cpu" and cpu_has_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones.

    Intel's processors since Sapphire Rapids do so in tiles alone: where a virtual machine hides these, products in bfloat16
    run at half the speed of float32 (LOG.md, 2026-11-30).
    """
    has_tiles_by_design = cpu_has("avx512_fp16") and cpu_fact("vendor_id") == "GenuineIntel"
    return cpu_has_tiles() or cpu_has("sve_bf16", "bf16") or (cpu_has("avx512_bf16") and not has_tiles_by_design)


def cpu_has_tiles() -> bool:
    """Whether this processor multiplies bfloat16 matrices in tiles (Intel's AMX)."""
    return cpu_has("amx_bf16", "amx_tile")


def cpu_has(*names: str) -> bool:
    """Whether this processor has one of these instruction sets, named as in torch."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in names)


def cast(model: nn.Module, precision: torch.dtype) -> nn.Module:
    """The model with weights of the given precision: the model itself for float32, else a copy."""
    return model if precision == torch.float32 else copy.deepcopy(model).to(precision)


SHORT = ("allocate memory", "out of memory", "ALLOC_FAILED")  # in errors of the CPU, of CUDA and MPS, and of cuBLAS


@contextlib.contextmanager
def explained_shortage(images_at_once: int = 0) -> Iterator[None]:
    """Turn an out-of-memory error into DeviceMemoryError, a sentence with advice.

    Args:
        images_at_once: images in one pass of a training step; 0 outside of training steps.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in SHORT)
        if not short or isinstance(error, Explained):
            raise
        if images_at_once:
            what, less = f"a step of {images_at_once} images at once", max(1, images_at_once // 2)
            advice = f"set micro_batch: {less} (the results stay the same but for rounding), or less still"
        else:
            what = "the data, the model and what its evaluation needs"
            advice = (
                "end other programs that use it, set device: cpu, or data_on: host for many images, or take a smaller "
                "image_size or width, or a larger patch_size"
            )
        raise DeviceMemoryError(f"there is not enough memory for {what}: {advice}") from error


def set_up(threads: int = 0, deterministic: bool = False) -> None:
    """Set the number of CPU threads (0: torch's default), and keep freed memory for the next step.

    With ``deterministic``, for CUDA devices, torch uses the same order of additions every time, and raises an error where
    it has none: fused attention heeds only this strict form. A CPU gives the same bits anyway.

    By default, glibc returns the memory of large tensors to the system, and the next step has to fetch it again, which
    costs a fifth of the speed (LOG.md has the timings); higher thresholds prevent this. On other systems nothing changes.
    Objects that exist at the first call are excluded from garbage collection, which makes the end of the process faster.
    """
    if not gc.get_freeze_count():
        gc.freeze()
    if (threads or DEFAULT_THREADS) != torch.get_num_threads():  # an earlier run in this process may have set its own
        torch.set_num_threads(threads or DEFAULT_THREADS)
    if deterministic:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it unwritten
    torch.use_deterministic_algorithms(deterministic)
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # parameters' numbers in malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1), (top_pad, 64 << 20)):
            mallopt(parameter, value)


def n_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(device: torch.device) -> int:
    """Bytes that this process can still use: on a CUDA device, or of this machine.

    The machine's memory is limited by the process's control groups, and shared with the other processes of its run.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = min([psutil.virtual_memory().available, *left_in_groups()])
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torch's launcher


def left_in_groups(told: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that this process's Linux control groups leave it, for each with a limit, of version 2 and of version 1.

    In a container, the file names a group of the host, which is not there: then its parents are looked at, up to the root.
    """
    with contextlib.suppress(OSError):
        for line in told.read_text(encoding="utf-8").splitlines():
            number, kinds, name = line.split(":", 2)
            if number == "0":
                root, files, cache = groups, ("memory.max", "memory.current"), "inactive_file"
            elif "memory" in kinds.split(","):
                files, cache = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
                root = groups / "memory"
            else:
                continue
            own = root / name.lstrip("/")
            for group in (own, *(parent for parent in own.parents if parent.is_relative_to(root))):
                with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit ("max")
                    limit, used = (int((group / file).read_text(encoding="utf-8")) for file in files)
                    counted = (line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
                    cached = next((int(value) for name, value in counted if name == cache), 0)
                    yield max(0, limit - used + cached)


def reset_peak_memory(device: torch.device) -> None:
    """Restart :func:`peak_memory` from the memory in use now (Linux and CUDA; elsewhere the peak is never reset)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # returns what an earlier run in this process has freed: set_up keeps it
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # see proc(5): resets VmHWM


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(device: torch.device) -> str:
    """The device's product name; for a CPU also the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.processor() or platform.machine()} GPU"
    return f"{cpu_name()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def cpu_name() -> str:
    return cpu_fact("model name") or platform.processor() or platform.machine()


def cpu_fact(key: str) -> str:
    """The value of a key in /proc/cpuinfo, such as ``cpu family``; empty if there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            facts = (line.split(":", 1) for line in lines if ":" in line)
            return next((value.strip() for name, value in facts if name.strip() == key), "")
    except OSError:
        return ""
