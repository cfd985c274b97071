"""Bad input gives one sentence that names its cause, before any training, and leaves earlier results unchanged."""

import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

from mae_core import errors
from mae_core.data import cifar
from mae_core.data.cifar import CheckedCIFAR10, unpickle_checked
from mae_core.data.images import load
from mae_core.data.shapes import Shapes
from mae_core.errors import DeviceMemoryError, MissingDataError, OutputError, ParameterError
from mae_core.study.parameters import FinetuneParameters, PretrainParameters, check_data_dir
from mae_core.study.study import Study
from mae_core.training import objective, runs
from mae_core.training.runs import finetune, pretrain

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["mae_core.training.runs"])


# Parameters ---------------------------------------------------------------------------------------------------------

GOOD = PretrainParameters().flat()
NAMES = st.sampled_from(sorted(GOOD))
RUBBISH = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["1e-3", "0.5", "true", "None", "; rm -rf x", "$(touch x)", "../x", "<script>", "nan", "inf"]),
)  # fmt: skip


def is_fine(name, value):
    """Whether a single changed value is allowed, by independent rules."""
    kind = type(GOOD[name])
    if kind is float and type(value) is int:
        value = float(value)
    return type(value) is kind


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(name=NAMES, value=RUBBISH, other=st.text(min_size=1, max_size=12))
def test_600_malformed_sets_are_refused_or_kept_as_they_are(name, value, other):
    if other not in GOOD:
        with pytest.raises(ParameterError, match="is not a parameter of pretrain"):
            PretrainParameters.check({other: value})
    try:
        run = PretrainParameters.check({**GOOD, name: value})
    except ParameterError:
        return
    assert is_fine(name, value), (name, value)
    assert run.flat() == {**GOOD, name: value}
    assert 0 < run.mask_ratio < 1
    assert run.width % run.heads == 0
    assert run.epochs >= run.warmup_epochs


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.recursive(RUBBISH, lambda inner: st.dictionaries(
    st.one_of(st.sampled_from(["study", "seeds", "shared", "pretrain", "finetune", "cases"]), st.text(max_size=5)),
    inner, max_size=4,
), max_leaves=12))  # fmt: skip
def test_no_rubbish_is_a_study(content):
    with pytest.raises(ParameterError):
        Study.check(content)


def test_an_entry_that_stands_twice_in_a_study_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("study: twice\nseeds: [0]\ncases:\n  a: {mask_ratio: 0.5}\n  a: {mask_ratio: 0.75}\n", encoding="utf-8")
    with pytest.raises(ParameterError, match="'a' appears twice"):
        Study.read(path)
    path.write_bytes(b"study: \xff\xfe")
    with pytest.raises(ParameterError, match="cannot be read: it is not text"):
        Study.read(path)


@pytest.mark.parametrize("name", ["../x", "a/b", "-rf", ".hidden", "a b", "a'b", 'a"b', "a;b", "a\nb", "$(x)", "a`b`", ""])
def test_a_name_that_is_no_plain_name_is_refused(name):
    for change in ({"study": name}, {"case": name}):
        with pytest.raises(ParameterError, match="a name consists of letters, digits"):
            PretrainParameters.check(change)
    with pytest.raises(ParameterError):
        Study.check({"study": "s", "seeds": [0], "cases": {name: None}})


def test_nothing_is_written_to_a_data_dir_outside_the_project(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for outside in (str(tmp_path / "elsewhere"), "../elsewhere", "/etc"):
        for start in (
            lambda: pretrain(PretrainParameters.check({"data_dir": outside})),  # noqa: B023
            lambda: PretrainParameters.from_namespace({"In": [f"data_dir = {outside!r}"], "data_dir": outside}),  # noqa: B023
            lambda: Study.check({"study": "s", "seeds": [0], "cases": {"a": {}}, "shared": {"data_dir": outside}}),  # noqa: B023
        ):
            with pytest.raises(ParameterError, match="it must already contain shapes-2-batches-py/"):
                start()
    (tmp_path / "project" / "data").symlink_to(tmp_path / "elsewhere")
    check_data_dir("shapes", "data")
    with pytest.raises(ParameterError, match="outside the project"):
        check_data_dir("shapes", "data/../more")  # where that is depends on the link
    (tmp_path / "elsewhere" / "shapes-2-batches-py").mkdir()
    check_data_dir("shapes", str(tmp_path / "elsewhere"))
    assert not (tmp_path / "project" / "outputs").exists()


# Data ---------------------------------------------------------------------------------------------------------------


def pickled(content):
    raw = pickle.dumps(content, protocol=2)
    return raw, hashlib.md5(raw).hexdigest()


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("content", [Evil(), [Evil()], {"data": Evil()}, Path("x"), np.random.default_rng])
def test_nothing_but_arrays_lists_and_text_is_unpickled(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    raw, md5 = pickled(content)
    (tmp_path / "batch").write_bytes(raw)
    with pytest.raises(MissingDataError, match="is not allowed in a data set"):
        unpickle_checked(tmp_path / "batch", md5)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("md5", ["0" * 32, "f" * 32])
def test_a_file_of_another_checksum_is_never_unpickled(tmp_path, monkeypatch, md5):
    raw, _ = pickled({"data": np.zeros(3)})
    (tmp_path / "batch").write_bytes(raw)
    monkeypatch.setattr(cifar, "ArraysOnly", lambda *words, **more: pytest.fail("it unpickles"))
    with pytest.raises(MissingDataError, match=r"batch is damaged \(its MD5 is not"):
        unpickle_checked(tmp_path / "batch", md5)


@pytest.mark.parametrize("damage", ["missing", "truncated", "bit", "list"])
def test_a_damaged_data_set_is_told_before_training(tmp_path, monkeypatch, tiny, draws_few, damage):
    load("shapes", tmp_path / "own")
    folder = tmp_path / "own" / Shapes.base_folder
    victim = folder / ("md5.json" if damage == "list" else "data_batch_3")
    content = bytearray(victim.read_bytes())
    content[50] ^= 1
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content[:100] if damage != "bit" else content)
    monkeypatch.setattr(runs, "fit", lambda *words, **more: pytest.fail("it trains"))
    with pytest.raises(ParameterError, match=r"dataset is 'shapes': .*(data_batch_3|md5.json).*delete its folder"):
        pretrain(PretrainParameters.check({**tiny, "data_dir": str(tmp_path / "own")}))


def test_cifar10_is_read_as_torchvision_reads_it(cifar10_dir):
    for train in (True, False):
        ours, theirs = CheckedCIFAR10(cifar10_dir, train), CIFAR10(cifar10_dir, train)
        assert np.array_equal(ours.data, theirs.data)
        assert (ours.targets, ours.classes) == (theirs.targets, theirs.classes)


class Truncated(http.server.BaseHTTPRequestHandler):
    """Announces an archive, sends a little of it, and closes the connection."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "170498071")
        self.end_headers()
        self.wfile.write(b"\x1f\x8b" + b"x" * 1000)

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Truncated) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
        with pytest.raises(MissingDataError, match=r"CIFAR-10 is not in data_dir .* could not be downloaded"):
            load("cifar10", tmp_path)
        server.shutdown()
    assert [path.name for path in tmp_path.iterdir()] == [".download.lock"]


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")  # no server listens there
    with pytest.raises(MissingDataError, match=r"could not be downloaded .*: put its folder cifar-10-batches-py/ there"):
        load("cifar10", tmp_path)


def test_a_data_dir_that_cannot_be_written_is_named(tiny, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"data_dir is 'file': shapes-2-batches-py/ cannot be created there"):
        pretrain(PretrainParameters.check({**tiny, "data_dir": "file"}))


# Machine ------------------------------------------------------------------------------------------------------------


def train_with_little_space(run, folder, limit):
    """Train in a child process, where no file may grow beyond ``limit`` bytes, as on a full disk."""
    os.chdir(folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        pretrain(run)
    except OutputError as error:
        os._exit(7 if "results cannot be written to" in str(error) else 8)


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0])
def test_a_full_disk_leaves_earlier_results_as_they_were(tiny, tmp_path, checkpoint_seconds):
    run = PretrainParameters.check({**tiny, "checkpoint_seconds": checkpoint_seconds})
    pretrain(run)
    folder = run.folder / "pretrain"
    runs.discard(folder)
    assert not list(folder.glob("checkpoint*"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    child = processes.Process(target=train_with_little_space, args=(run, str(tmp_path), 20000))
    child.start()
    child.join()
    assert child.exitcode == 7
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_output_folder_that_cannot_be_made_is_told(tiny):
    Path("outputs").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(OutputError, match=r"results cannot be written to outputs/notebook/random-75/seed0/pretrain"):
        pretrain(PretrainParameters.check(tiny))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory: you tried"),
        MemoryError(),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"),
    ],
)
def test_out_of_memory_suggests_a_smaller_micro_batch(tiny, monkeypatch, error):
    def fails(*words):
        raise error

    monkeypatch.setattr(objective, "masked_error", fails)
    with pytest.raises(DeviceMemoryError, match=r"not enough memory for a step of 64 images at once: set micro_batch: 32"):
        pretrain(PretrainParameters.check(tiny))


@pytest.mark.parametrize(
    ("stage", "part", "name"),
    [
        ("pretrain", "reconstruction", "reconstruction_metrics"),
        ("finetune", "probes", "knn"),
        ("finetune", "classification", "class_scores"),
    ],
)
def test_out_of_memory_elsewhere_leaves_earlier_results_as_they_were(tiny, monkeypatch, stage, part, name):
    def fails(*words):
        raise torch.OutOfMemoryError("CUDA out of memory")

    kind, train = {"pretrain": (PretrainParameters, pretrain), "finetune": (FinetuneParameters, finetune)}[stage]
    folder = Path("outputs/notebook/random-75/seed0") / stage
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(getattr(runs, part), name, fails)
    with pytest.raises(
        DeviceMemoryError, match="not enough memory for the data, the model and what its evaluation needs: end other"
    ):
        train(kind.check(tiny))
    assert (folder / "metrics.json").read_text(encoding="utf-8") == "{}"


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(tiny, monkeypatch):
    def fails(*words):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(objective, "masked_error", fails)
    with pytest.raises(RuntimeError, match="shapes differ"):
        pretrain(PretrainParameters.check(tiny))


def test_a_failed_run_leaves_the_results_before_it(tiny, monkeypatch):
    run = PretrainParameters.check(tiny)
    pretrain(run)
    before = {path: path.read_bytes() for path in (run.folder / "pretrain").iterdir() if "checkpoint" not in path.name}
    monkeypatch.setattr(objective, "masked_error", lambda pred, *rest: pred.float().mean() * float("nan"))
    with pytest.raises(errors.NotFiniteError):
        pretrain(run)
    assert {path: path.read_bytes() for path in before} == before


def test_what_a_killed_process_left_unfinished_is_swept_away(tiny):
    run = PretrainParameters.check(tiny)
    folder = run.folder / "pretrain"
    (folder / ".unfinished.abc").mkdir(parents=True)
    (folder / ".unfinished.abc" / "metrics.json").write_text("{}", encoding="utf-8")
    (folder / ".checkpoint.safetensors.123").write_text("half", encoding="utf-8")
    pretrain(run)
    assert not list(folder.glob(".*"))


def test_weights_that_are_no_weights_are_refused(tiny, tmp_path):
    for content in (b"", b"hello", pickle.dumps({"a": 1}), io.BytesIO().getvalue()):
        path = tmp_path / "weights.safetensors"
        path.write_bytes(content)
        with pytest.raises(ParameterError, match=r"weights: .* is damaged"):
            finetune(FinetuneParameters.check({**tiny, "weights": str(path)}))
    torch.save({"model": torch.zeros(3)}, path)
    with pytest.raises(ParameterError, match=r"weights: .* is damaged"):
        finetune(FinetuneParameters.check({**tiny, "weights": str(path)}))


def test_metrics_are_written_last(tiny, monkeypatch):
    """metrics.json marks a complete run: it is deleted before the other files are replaced, and written after them."""
    order, replace = [], Path.replace

    def watch(self, target):
        folder = Path(target).parent
        if not Path(target).name.startswith((".", "checkpoint")) and not folder.name.startswith("."):
            order.append((Path(target).name, (folder / "metrics.json").exists()))
        return replace(self, target)

    run = PretrainParameters.check(tiny)
    pretrain(run)
    monkeypatch.setattr(Path, "replace", watch)
    pretrain(run)
    assert order[-1][0] == "metrics.json"
    assert not any(there for _, there in order)
    assert len(order) == 6  # pre-training: five files and the pictures
