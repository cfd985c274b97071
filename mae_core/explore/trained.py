"""The models and images to explore: trained runs found on disk, or a small model trained first.

A run's weights are in its folder (study/results.py). A published run keeps a copy in bfloat16, small enough for git.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field

from mae_core.data import Dataset, folder_of
from mae_core.data.images import Split, load
from mae_core.data.layout import check_layout, list_images
from mae_core.devices import choose_device
from mae_core.errors import MissingDataError, ParameterError
from mae_core.model.mae import Classifier, Encoder, MaskedAutoencoder
from mae_core.study.checked import Name, Seed, UserPath
from mae_core.study.finished import read_beside
from mae_core.study.parameters import OUTPUTS, Device, FinetuneParameters, Parameters, PretrainParameters, check_data_dir
from mae_core.study.results import FULL, KEPT, explained_writing, load_sheet, read_json
from mae_core.study.tensors import load_tensors, save_tensors, tensors_sha256
from mae_core.training.runs import is_complete, pretrain

Shown = Literal["auto", Dataset]
SEEN = {
    "cifar10": "ten classes of CIFAR-10",
    "cifar100": "a hundred classes of CIFAR-100",
    "shapes": "ten kinds of drawn shapes",
}


class ExploreParameters(Parameters):
    """The models and the images to explore."""

    study: Name = Field("laptop", description="study whose trained models to open, from outputs/<study>/")
    cases: list[Name] = Field(
        [], description="cases to open; empty: all that have weights, and the first one's sizes of image and patch"
    )
    seed: Seed = Field(0, description="seed of the runs to open")
    dataset: Shown = Field("auto", description="images to show; auto: of the training, or its pictures")
    data_dir: UserPath = Field("", description="folder that contains the data set; empty: as in training")
    train: bool = Field(
        False, description="true: train and open a small model instead, on dataset (auto: cifar10), downloaded if missing"
    )
    epochs: int = Field(2, description="training epochs of the small model", ge=1, le=1000)
    device: Device = Field("auto", description="where to compute; auto: cuda if available, else mps, else cpu")

    def check_together(self) -> None:
        if self.train:
            small = self.shown_with(PretrainParameters(dataset="cifar10"))
            check_data_dir(small.dataset, small.data_dir)

    def shown_with(self, trained: PretrainParameters) -> Self:
        """These parameters with the data set and folder of a model's training, where they name none themselves."""
        dataset = trained.dataset if self.dataset == "auto" else self.dataset
        usual = trained.data_dir if dataset == trained.dataset else "data"
        return self.model_copy(update={"dataset": dataset, "data_dir": self.data_dir or usual})


@dataclass(frozen=True)
class Trained:
    """One case to explore, in float32 and ready to evaluate.

    Attributes:
        run: the parameters of its pre-training.
        model: the pre-trained autoencoder.
        classifier: the same encoder, fine-tuned; None if there is none.
        folder: the run's folder, ``outputs/<study>/<case>/seed<k>``.
        classes: names of the classifier's classes; empty without one.
    """

    run: PretrainParameters
    model: MaskedAutoencoder
    classifier: Classifier | None
    folder: Path
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The case, such as ``random-75``."""
        return self.run.case

    @property
    def seen(self) -> str:
        """The images that it was trained on, in words."""
        own = f"your images in `{Path(self.run.data_dir).name}`" if Path(self.run.data_dir).name else "images of your own"
        return SEEN.get(self.run.dataset, own)

    @property
    def device(self) -> torch.device:
        return self.model.mask_token.device

    @property
    def encoder(self) -> Encoder:
        """The fine-tuned encoder where there is one, else the pre-trained one."""
        return self.classifier.encoder if self.classifier else self.model.encoder


def keep(folder: Path) -> Path:
    """Copy the weights of a run to ``weights.bfloat16.safetensors`` beside them, in half the size; return the path.

    The copy names the checksum of the weights, so that a reader can tell whether they are those of the run beside it.

    Args:
        folder: the run's folder of one stage, ``outputs/<study>/<case>/seed<k>/<stage>``.

    Raises:
        ParameterError: if it holds no weights, or damaged ones.
        OutputError: if the copy cannot be written.
    """
    try:
        if not (folder / FULL).is_file():
            raise ValueError(f"{folder / FULL} does not exist: train the run first")
        tensors, about = load_tensors(folder / FULL)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    kept = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    with explained_writing(folder / KEPT):
        save_tensors(folder / KEPT, kept, about, copied_sha256=tensors_sha256(folder / FULL))
    return folder / KEPT


def weights_in(folder: Path) -> Path | None:
    """The weights of a finished stage, preferably in full precision; None if it has none."""
    found = (folder / name for name in (FULL, KEPT) if (folder / name).is_file())
    return next(found, None) if (folder / "metrics.json").is_file() else None


def open_autoencoder(path: Path, device: torch.device) -> tuple[MaskedAutoencoder, PretrainParameters]:
    """A pre-trained model in float32 on a device, and the parameters of its training, for evaluation in float32.

    Raises:
        ParameterError: if the file is damaged, or holds another kind of model.
    """
    try:
        tensors, about = load_tensors(path)
        run = PretrainParameters.check(about)
        model = MaskedAutoencoder(run.model)
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise ParameterError(f"{path} cannot be opened ({error}): train that run again, or open other cases") from error
    return model.to(device).eval(), run.model_copy(update={"device": device.type, "precision": "float32"})


def open_classifier(path: Path, device: torch.device) -> Classifier:
    """A fine-tuned classifier in float32 on a device; raises ParameterError as :func:`open_autoencoder`."""
    try:
        tensors, about = load_tensors(path)
        model = Classifier(FinetuneParameters.check(about).model, n_classes=len(tensors["head.bias"]))
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ParameterError(f"{path} cannot be opened ({error}): train that run again, or open other cases") from error
    return model.to(device).eval()


def trained_models(run: ExploreParameters) -> list[Trained]:
    """The models to explore: those of a study on disk, or a small one, which is trained unless it is on disk already.

    Models whose images have another size or other patches than those of the first need masks of their own: without
    ``cases``, they are left out.

    Raises:
        ParameterError: if no such run has weights (the message names what is there), or if the named cases do not fit.
    """
    if run.train:
        folders = [small_model(run)]  # may take a GPU of its own, which it can only before CUDA starts
    else:
        names = run.cases or [path.name for path in sorted(OUTPUTS.joinpath(run.study).glob("*"), key=default_first)]
        folders = [OUTPUTS / run.study / name / f"seed{run.seed}" for name in names]
        found = [folder for folder in folders if weights_in(folder / "pretrain")]
        if not found or (run.cases and found != folders):
            lacking = next((folder for folder in folders if folder not in found), OUTPUTS / run.study)
            runs = {path.parents[1] for path in OUTPUTS.glob("*/*/seed*/pretrain/weights*.safetensors")}
            there = sorted({f"{path.parents[1].as_posix()} (seed {path.name[4:]})" for path in runs})
            raise ParameterError(
                f"there are no weights in {lacking.as_posix()}/: train that run first, or set train to True for a small "
                f"model; there are weights in {', '.join(there) or 'no study'}"
            )
        folders = found
    device = choose_device(run.device)
    models = [open_run(folder, device) for folder in folders]
    fitting = [found for found in models if cut(found) == cut(models[0])]
    if run.cases and len(fitting) < len(models):
        other = next(found for found in models if found not in fitting)
        (side, patch), (first_side, first_patch) = cut(other), cut(models[0])
        raise ParameterError(
            f"cases has {models[0].name} (images of {first_side} pixels, patches of {first_patch}) and {other.name} "
            f"({side} and {patch}): one mask cannot fit both, so open them one after the other"
        )
    return fitting


def cut(trained: Trained) -> tuple[int, int]:
    """Sizes of its images and of their patches."""
    return trained.run.image_size, trained.run.patch_size


def default_first(path: Path) -> tuple[bool, str]:
    """Sort a study's cases by name, its default first."""
    return path.name != "random-75", path.name


def open_run(folder: Path, device: torch.device) -> Trained:
    """Open a run's pre-trained model and, where there is one for images of the same size, its fine-tuned classifier."""
    path, tuned = weights_in(folder / "pretrain"), weights_in(folder / "finetune")
    assert path is not None
    model, run = open_autoencoder(path, device)
    classifier = open_classifier(tuned, device) if tuned else None
    if classifier is None or classifier.encoder.config.image_size != run.image_size:
        return Trained(run, model, None, folder)
    results = folder / "finetune" / "metrics.json"
    classes = read_beside(results).get("predictions", {}).get("classes")
    if not classes:
        raise ParameterError(f"{results} does not name the classes of the classifier beside it: copy the whole folder")
    return Trained(run, model, classifier, folder, tuple(classes))


def small_model(run: ExploreParameters) -> Path:
    """The folder of a small model of these parameters, which is trained first unless the folder holds it."""
    data = run.shown_with(PretrainParameters(dataset="cifar10")).model_dump(
        include={"dataset", "data_dir", "epochs", "device"}
    )
    wanted = PretrainParameters(study="explore", width=64, decoder_width=64, **data)
    if wanted.dataset == "folder":
        train, _ = list_images(Path(wanted.data_dir))
        wanted = wanted.model_copy(update={"batch_size": min(wanted.batch_size, len(train.names))})
    if not is_complete(wanted, "pretrain"):
        pretrain(wanted)
    return wanted.folder


def images_to_show(run: ExploreParameters, first: Trained) -> Split:
    """All test images where the data set is at hand, else those of the first model's own pictures; nothing is downloaded.

    Without the data set, labels are those that the first model's classifier recorded with its pictures, or -1.
    """
    if at_hand(run, first.run.image_size):
        return load(run.dataset, run.data_dir, train=False, image_size=first.run.image_size, check=False)
    tuned = first.folder / "finetune"
    if first.classifier and (tuned / "pictures.png").is_file():
        images_nHWC = load_sheet(tuned / "pictures.png", 1)[0]
        labels_n = torch.tensor(read_json(tuned / "metrics.json")["predictions"]["true"])
    else:
        path = first.folder / "pretrain" / "pictures.png"
        if not path.is_file():
            raise MissingDataError(
                f"neither the images of {run.dataset} in {run.data_dir!r} nor {path} is there: name the images' folder"
            )
        images_nHWC = load_sheet(path, 3)[0]
        labels_n = torch.full((len(images_nHWC),), -1)
    return Split(torch.from_numpy(images_nHWC.copy()).permute(0, 3, 1, 2), labels_n, first.classes)


def training_images(run: ExploreParameters, limit: int, image_size: int) -> Split | None:
    """The first training images, to look for neighbours among; None if the data set is not at hand."""
    at_all = at_hand(run, image_size)
    return load(run.dataset, run.data_dir, limit=limit, image_size=image_size, check=False) if at_all else None


def at_hand(run: ExploreParameters, image_size: int) -> bool:
    """Whether the data set's files are in ``data_dir``."""
    try:
        check_at_hand(run, image_size)
    except MissingDataError:
        return False
    return True


def check_at_hand(run: ExploreParameters, image_size: int) -> None:
    """Raise MissingDataError, with what to do, if the data set's files are not in ``data_dir``."""
    if run.dataset == "folder":
        check_layout(Path(run.data_dir))
    elif not (Path(run.data_dir) / (folder := folder_of(run.dataset, image_size))).is_dir():
        raise MissingDataError(
            f"dataset is {run.dataset!r}, and {run.data_dir!r} has no {folder}: name another folder, or set dataset to "
            f"auto for the images of the training, or their pictures"
        )
