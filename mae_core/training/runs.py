"""Pre-training and fine-tuning: a run from its data to its results folder (see study/results.py).

Shapes: B batch, C = 3 colours, H = W pixels, n images of a split.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from mae_core import devices, gpus
from mae_core.data.images import Split, checksum, load, place, scale_pixels
from mae_core.data.layout import fingerprint, list_images
from mae_core.errors import Explained, MissingDataError, OutputError, ParameterError, StoppedError
from mae_core.evaluation import N_PICTURES, classification, flops, probes, reconstruction
from mae_core.model.mae import Classifier, Encoder, MaskedAutoencoder
from mae_core.study import provenance, results
from mae_core.study.foreign import Found, find_encoder, settings_sha256, weights_file
from mae_core.study.parameters import OUTPUTS, FinetuneParameters, PretrainParameters, check_data_dir
from mae_core.study.tensors import load_tensors, save_tensors, tensors_sha256
from mae_core.training import objective, processes
from mae_core.training.checkpoint import Position, discard, discard_at_exit, is_left_over
from mae_core.training.loop import Fitted, fit

Watch = Callable[[Position, nn.Module, Split], None]
Model = TypeVar("Model", bound=nn.Module)
MANY_CLASSES = 10  # more than these: top-5 accuracy, too
N_NEIGHBOURS = 5  # nearest training images shown for each test image


def pretrain(run: PretrainParameters, watch: Watch | None = None) -> MaskedAutoencoder:
    """Pre-train a masked autoencoder and write its results to ``run.folder / "pretrain"``.

    Args:
        watch: called after every step with the progress, the model and the test images; see live.py.

    Raises:
        ParameterError: if the device is missing, or the folder has a checkpoint of other parameters.
        NotFiniteError: if training diverges.
        DeviceMemoryError, OutputError, BusyError, StoppedError: see :func:`recorded`.
        ProcessError: if one of several processes is killed or hangs.
    """
    if run.processes > 1 and not processes.started():
        return trained_together(run, "pretrain", MaskedAutoencoder)
    with recorded(run, "pretrain") as record:
        device = record.device
        train, test = load_both(run, record)
        model = new_model(MaskedAutoencoder, run, device)
        task, watching = objective.reconstruction(run), bind(watch, model, test)
        record.add(fit(model, task, train, run, record.folder, device, watch=watching, began=record.began))
        if not record.leads:
            return model
        record.metrics |= {"n_train": len(train), "n_test": len(test)}
        record.metrics |= reconstruction.reconstruction_metrics(model, test, run, device)
        record.metrics["flops_per_image"] = flops.of_pretraining(run)
        record.metrics["n_parameters"] = flops.count_parameters(run.model)
        record.sheets["pictures"] = reconstruction.pictures(model, test, run, device)
        record.weights = model.state_dict()
    return model


def finetune(run: FinetuneParameters, watch: Watch | None = None) -> Classifier:
    """Fine-tune the encoder with a linear head, and write the results to ``run.folder / "finetune"``.

    Args:
        watch: as for :func:`pretrain`.

    Raises:
        ParameterError: as :func:`pretrain`, or if the weights are those of a model of another shape.
        NotFiniteError: if training diverges.
    """
    run = run.resolved()
    if run.processes > 1 and not processes.started():
        return trained_together(run, "finetune", Classifier)
    with recorded(run, "finetune") as record:
        device = record.device
        train, test = load_both(run, record)
        model = new_model(Classifier, run, device, n_classes=len(train.classes))
        norm_is_last = False
        if run.weights:
            found = load_encoder(model, run)
            record.metrics |= found.told(run.model)
            norm_is_last = found.pools_mean
            record.inputs |= initial(run.weights)
        if run.probes and record.leads:
            probe(model.encoder, train, test, run, record, norm_is_last)
        if run.pooling == "mean" and not norm_is_last:  # after the mean, it starts anew, as the MAE paper's fc_norm
            model.encoder.norm.reset_parameters()

        def test_epoch() -> dict[str, float]:
            scores_nC = classification.class_scores(model, test, run, device)
            return {
                "test_loss": F.cross_entropy(scores_nC, test.labels_n).item(),
                "test_accuracy": classification.accuracy(scores_nC, test.labels_n),
            }

        task, watching = objective.classification(run, len(train.classes)), bind(watch, model, test)
        record.add(fit(model, task, train, run, record.folder, device, test_epoch, watching, record.began))
        if not record.leads:
            return model
        record.metrics |= {"n_train": len(train), "n_test": len(test)}
        record.metrics["last_epoch_accuracy"] = record.history["test_accuracy"][-1]
        record.metrics["best_epoch_accuracy"] = max(record.history["test_accuracy"])
        record.metrics["flops_per_image"] = flops.of_classifier(run, len(train.classes))
        evaluate(model, test, run, record)
        record.weights = model.state_dict()
    return model


def evaluate(model: Classifier, test: Split, run: FinetuneParameters, record: "Record") -> None:
    """Record what a classifier predicts for the test images, its most confident mistakes, and its attention."""
    scores_nC = classification.class_scores(model, test, run, record.device)
    if len(test.classes) > MANY_CLASSES:
        record.metrics["top5_accuracy"] = classification.top5_accuracy(scores_nC, test.labels_n)
    record.metrics["predictions"] = classification.predictions(scores_nC, test)
    record.predictions = (scores_nC.argmax(dim=1), test.labels_n)
    record.metrics["mistakes"] = classification.confident_mistakes(scores_nC, test)
    pictured = scale_pixels(test.take(slice(N_PICTURES)))
    record.sheets["pictures"] = [pictured]
    record.sheets["attention"] = [pictured, classification.class_attention(model.encoder, pictured)]
    if record.metrics["mistakes"]["images"]:
        record.sheets["mistakes"] = [scale_pixels(test.take(torch.tensor(record.metrics["mistakes"]["images"])))]


def trained_together(run: PretrainParameters | FinetuneParameters, stage: str, kind: type[nn.Module]) -> Any:
    """Let several processes train (see processes.py), and return the model that they have trained."""
    processes.train(run, stage)
    tensors, _ = load_tensors(run.folder / stage / "weights.safetensors")
    more = {"n_classes": len(tensors["head.weight"])} if kind is Classifier else {}
    model = new_model(kind, run, devices.choose_device(run.device), **more)
    model.load_state_dict(tensors)
    discard_at_exit(run.folder / stage)
    return model


def is_complete(run: PretrainParameters | FinetuneParameters, stage: str) -> bool:
    """Whether a run has finished, from what it would read now, and its weights are still there.

    A published run without its weights is not complete, nor is a run that was restarted.
    """
    folder, checkpoint = run.folder / stage, run.folder / stage / "checkpoint.safetensors"
    begun = checkpoint.exists() and not is_left_over(checkpoint)
    if begun or not (folder / "metrics.json").is_file() or run.change(folder / "parameters.json"):
        return False
    try:
        source = results.read_json(folder / "provenance.json")
        inputs = {"weights_sha256": tensors_sha256(folder / results.FULL)}
        if weights := getattr(run, "weights", ""):
            inputs |= initial(weights)
            if "initial_settings_sha256" not in source:  # a run from before they were recorded
                inputs.pop("initial_settings_sha256", None)
        if run.dataset == "folder":
            inputs["images"] = fingerprint(Path(run.data_dir))
        return inputs.items() <= source.items()
    except (OSError, ValueError, SafetensorError):  # a file is missing or damaged
        return False


def initial(weights: str) -> dict[str, str]:
    """Checksums of the weights that a run starts from, and of the settings beside them if they are others'."""
    settings = settings_sha256(weights)
    found = {"initial_weights_sha256": tensors_sha256(weights_file(weights))}
    return found if settings is None else found | {"initial_settings_sha256": settings}


def bind(watch: Watch | None, model: nn.Module, test: Split) -> Callable[[Position], None]:
    """``watch`` as the training loop calls it."""
    return lambda at: watch(at, model, test) if watch else None


def probe(
    encoder: Encoder, train: Split, test: Split, run: FinetuneParameters, record: "Record", norm_is_last: bool
) -> None:
    """Record the linear probe, k-NN, and the nearest neighbours of the pictured test images; see probes.PatchMean."""
    train_nD, test_nD = probes.features(encoder, train, test, run, record.device, norm_is_last)
    record.metrics["probes"] = {
        "linear": probes.linear_probe(train_nD, train.labels_n, test_nD, test.labels_n),
        "knn": probes.knn(train_nD, train.labels_n, test_nD, test.labels_n),
    }
    pictured = slice(N_PICTURES)
    _, ids_mk = probes.nearest(train_nD, test_nD[pictured], min(N_NEIGHBOURS, len(train_nD)))
    record.metrics["neighbours"] = {
        "classes": list(test.classes),
        "true": test.labels_n[pictured].tolist(),
        "labels": train.labels_n[ids_mk].tolist(),
    }
    rows = [test.take(pictured), *(train.take(ids_m) for ids_m in ids_mk.T)]
    record.sheets["neighbours"] = [scale_pixels(row) for row in rows]


def new_model(kind: type[Model], run: PretrainParameters | FinetuneParameters, device: torch.device, **more: Any) -> Model:
    """A new model; its initial weights depend only on the seed, not on the device."""
    torch.manual_seed(run.seed)
    return kind(run.model, **more).to(device)


def load_encoder(model: Classifier, run: FinetuneParameters) -> Found:
    """Load pre-trained weights into the classifier's encoder, and print what is not as it was in them.

    Raises:
        ParameterError: if the file is missing or damaged, or its model differs; names the parameter that differs.
    """
    with contextlib.suppress(OSError):  # find_encoder explains it
        if not Path(run.weights).exists():
            raise ParameterError(f"weights is {run.weights!r}: there is no such file; pre-train first, or leave it empty")
    found = find_encoder(run.weights)
    found.check(run.model)
    try:
        model.encoder.load_state_dict(found.state(run.model))
    except (RuntimeError, KeyError) as error:
        raise ParameterError(f"weights is {run.weights!r}: it does not hold an encoder of this shape ({error})") from error
    if change := found.change(run.model):
        print(f"positions {change}")
    if found.pools_mean and run.pooling != "mean":
        print(f"{found.path}: its last norm follows the mean of the patches; here, the class token")
    if found.scale:
        print(f"{found.path}: {found.scale}")
    return found


def load_both(run: PretrainParameters | FinetuneParameters, record: "Record") -> tuple[Split, Split]:
    """Training images, and the test or held-out ones, with labels on the device, and images there or on the host.

    The record gets the checksum of the data.

    Raises:
        ParameterError: if the data set is missing or unfit.
    """
    try:
        own = run.dataset == "folder" and record.leads
        before = keys_of(run.data_dir) if own else ()
        train, test = (
            load(run.dataset, run.data_dir, first, limit, run.image_size, run.holdout)
            for first, limit in ((True, run.train_images), (False, 0))
        )
        if record.leads:
            record.data_md5 = checksum(run.dataset, run.data_dir, run.image_size)
        if own:
            record.inputs["images"] = fingerprint(Path(run.data_dir))
            if keys_of(run.data_dir) != before:
                raise MissingDataError(f"the images in {run.data_dir} changed while they were read: run again")
        train, test = place([train, test], run.data_on, record.device)
        return train, test
    except MissingDataError as error:
        raise ParameterError(f"dataset is {run.dataset!r}: {error}") from error


def keys_of(data_dir: str) -> tuple[str, ...]:
    """Checksums of the names and sizes of a folder's training and test images, and of when they changed."""
    return tuple(listing.key for listing in list_images(Path(data_dir)))


@dataclasses.dataclass
class Record:
    """The results of a run, collected during the computation and written at the end."""

    folder: Path
    device: torch.device
    began: float  # time.monotonic() when the run was started
    leads: bool = True  # False: this process only helps another one, which records the run
    data_md5: str = ""  # of the data when they were loaded
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)  # checksums of what else it read, if anything
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # one list per curve
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)  # final numbers
    sheets: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)  # rows of images, see results.save_sheet
    predictions: tuple[Tensor, Tensor] | None = None  # predicted and true class of each test image
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    elapsed_before: float = 0.0  # seconds that earlier processes spent on the run
    machines: list[str] = dataclasses.field(default_factory=list)  # on which it ran, in words

    def add(self, fitted: Fitted) -> None:
        """Record what a training tells."""
        self.history, self.elapsed_before, self.machines = fitted.history, fitted.elapsed_before, fitted.machines
        self.metrics |= fitted.metrics


@contextlib.contextmanager
def recorded(run: PretrainParameters | FinetuneParameters, stage: str) -> Iterator[Record]:
    """Set up the device, and at the end write all results of a run, or none; an earlier run's results stay until then.

    Raises:
        ParameterError: if the device is missing, or data would be written outside the project.
        BusyError: if another process writes to the folder.
        DeviceMemoryError: if memory runs out.
        OutputError: if the folder cannot be written.
        StoppedError: if the user interrupts it.
    """
    check_data_dir(run.dataset, run.data_dir, run.image_size, stage == "finetune")
    folder, leads = run.folder / stage, processes.leads()
    try:
        with contextlib.ExitStack() as stack:
            if leads:
                stack.enter_context(results.claimed(folder))
            if not processes.started():
                stack.enter_context(gpus.claimed(run.device))
            record = Record(folder, devices.choose_device(run.device), time.monotonic(), leads)
            on_cuda = record.device.type == "cuda"
            devices.set_up(processes.threads(run.threads), deterministic=run.deterministic and on_cuda)
            stack.enter_context(processes.joined(record.device))
            if leads:
                discard(folder)  # left by an earlier, complete run
            commit = provenance.commit()
            with devices.explained_shortage():
                yield record
            if not leads:
                return
            write_results(record, run, commit)
    except KeyboardInterrupt:
        raise StoppedError("stopped: run again to start, or to continue from the last checkpoint") from None
    except OSError as error:
        named = Path(str(error.filename)).absolute() if error.filename else folder.absolute()
        here = named.is_relative_to(OUTPUTS.absolute()) or folder.absolute().is_relative_to(named)
        if isinstance(error, Explained | BrokenPipeError) or not here:
            raise
        raise OutputError(
            f"results cannot be written to {folder} ({error.strerror or error}): free some space, or check its "
            f"permissions; the files that were there before are unchanged"
        ) from error
    # Checkpoints stay until this process exits normally, so that a kill while drawing figures costs no training.
    discard_at_exit(folder)


def write_results(record: Record, run: PretrainParameters | FinetuneParameters, commit: dict[str, Any]) -> None:
    """Write all files of a run's folder, or none; ``commit`` is that of the code when the run started."""
    wall = {"wall_seconds": time.monotonic() - record.began + record.elapsed_before}
    with results.atomic_replace(record.folder, last="metrics.json") as unfinished:
        results.write_json(unfinished / "parameters.json", run.flat())
        results.write_json(unfinished / "history.json", record.history)
        for name, rows in record.sheets.items():
            results.save_sheet(unfinished / f"{name}.png", rows)
        if record.predictions:
            results.save_predictions(unfinished / "predictions.png", *record.predictions)
        save_tensors(unfinished / "weights.safetensors", record.weights, run.flat())
        source = provenance.collect(run, record.device, unfinished / "weights.safetensors", record.data_md5)
        if len(record.machines) > 1:
            source["machines"] = record.machines  # the run was interrupted, and went on elsewhere
        results.write_json(unfinished / "provenance.json", commit | source | record.inputs | wall)
        results.write_json(unfinished / "metrics.json", record.metrics | wall)
