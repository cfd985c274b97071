"""A widget to paint masks on an image by hand and see what trained models reconstruct; its page is in explorer.js."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from IPython.display import display
from torch import Tensor

from mae_core.data.images import Split, place, scale_pixels
from mae_core.errors import Explained, ParameterError
from mae_core.evaluation import probes
from mae_core.evaluation.classification import class_scores
from mae_core.explore import pictures
from mae_core.explore.trained import (
    ExploreParameters,
    Trained,
    at_hand,
    check_at_hand,
    images_to_show,
    trained_models,
    training_images,
)

OWN = -1  # index of the picture of one's own
N_SEARCHED, N_FOUND = 5000, 6  # training images to look for neighbours among; neighbours to show
HINTS = {
    0: "Nothing is hidden. Click or drag on the image to hide patches.",
    1: "Everything is hidden: the model paints what it expects without having seen anything.",
}
TO_TRY = """\
- Hide all but one patch, then move that patch about. What does the model take from a single patch?
{classify}- Open a picture of your own: a face, a letter, a photograph of your room. The models saw {seen} only.
- `pretrain` trains a model with masks of your choice; set this notebook's `study` to its study (`notebook`, unless you
  change it) to open it here."""
TO_CLASSIFY = """\
- Show only the outline of a thing. How many patches does the classifier need until it names the reconstruction rightly?
"""
NORMALIZED = (
    "{name} predicts normalized patches: each hidden patch gets the original's mean and deviation, so there is no PSNR."
)


class Explorer(anywidget.AnyWidget):
    """Hide and show patches of an image by hand, and see it reconstructed by several models.

    The page sets ``hidden``, ``image`` and ``chosen``; each change computes ``picture`` anew. Pictures are pixels_HWC as
    bytes. Everything else that the page asks for is a message with a key ``ask``: ``mask``, ``own`` or ``neighbours``.
    """

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")

    about = traitlets.Dict(help="what does not change: sizes, cases, number of images").tag(sync=True)
    image = traitlets.Int(0, help="index of the image; -1: the picture of one's own").tag(sync=True)
    hidden = traitlets.List(traitlets.Bool(), help="for each patch, row by row").tag(sync=True)
    chosen = traitlets.List(traitlets.Unicode(), help="the cases to compare").tag(sync=True)
    stroke = traitlets.Int(0, help="counts the page's changes; the picture repeats the last one's number").tag(sync=True)
    picture = traitlets.Dict(help="original, reconstructions, errors, and what is said about them").tag(sync=True)
    neighbours: Any = traitlets.List(help="name and pixels of the nearest training images; empty: not asked").tag(sync=True)
    message = traitlets.Unicode("", help="one sentence: a hint, or what went wrong").tag(sync=True)

    def __init__(self, models: Sequence[Trained], images: Split, run: ExploreParameters):
        """Show the first image with a random mask of 75 %.

        Args:
            models: at least one, all with patches of the same size.
            images: of the size that the models take.
            run: where to find training images for :meth:`find_neighbours`; its data set and folder are named.
        """
        self.models, self.images, self.run = list(models), images, run
        self.own: Tensor | None = None
        self.features: tuple[Split, Tensor, Tensor, Tensor] | None = None
        self.still_output: Any = None
        self.draws = 0
        first, judge = self.models[0].run, pictures.judge(self.models)
        by_strategy = {trained.run.mask_strategy: trained.name for trained in reversed(self.models)}
        super().__init__(
            about={
                "side": first.model.image_size, "grid": first.model.grid_size, "n_images": len(images),
                "study": first.study, "cases": [trained.name for trained in self.models],
                "first": self.models[0].name, "judge": judge.name if judge else "", "train": at_hand(run, first.image_size),
            },
            hidden=pictures.hidden_patches("random", 0.75, first.model.grid_size, seed=0),
            chosen=[trained.name for trained in self.models if trained.name in by_strategy.values()],
        )  # fmt: skip
        self.paint()
        self.observe(self.repaint, ["hidden", "image", "chosen"])
        self.observe(self.see, ["stroke"])
        self.on_msg(self.answer)

    @property
    def pixels_CHW(self) -> Tensor:
        """The image shown, uint8."""
        return self.images.images_nCHW[self.image] if self.image != OWN or self.own is None else self.own

    @property
    def title(self) -> str:
        """What the image is, such as ``image 4 of 10,000: cat``."""
        if self.image == OWN:
            return "your picture"
        label = int(self.images.labels_n[self.image])
        name = f": {self.images.classes[label]}" if label >= 0 else ""
        return f"image {self.image + 1:,} of {len(self.images):,}{name}"

    @contextmanager
    def telling_errors(self) -> Iterator[None]:
        """Show the page what went wrong: it sees no traceback."""
        try:
            yield
        except Exception as error:
            self.say(str(error) if isinstance(error, Explained) else f"this failed ({type(error).__name__}: {error})")
            self.send({"seen": self.stroke})  # no picture will repeat this number
            raise

    def repaint(self, change: Any) -> None:
        """Answer a change of the image, the mask or the cases."""
        with self.telling_errors():
            self.paint(change)

    def see(self, change: Any) -> None:
        """Tell the page that a change was seen which leaves the picture as it is, as two that undo each other."""
        if self.picture["stroke"] != self.stroke:
            self.send({"seen": self.stroke})

    def paint(self, change: Any = None) -> None:
        """Compute the pictures of the present image, mask and cases."""
        if change and change["name"] == "image":
            self.neighbours = []
        models = [trained for trained in self.models if trained.name in self.chosen] or self.models[:1]
        judge, image_CHW = pictures.judge(self.models), self.pixels_CHW
        picture = {
            "stroke": self.stroke,
            "title": self.title,
            "original": image_CHW.permute(1, 2, 0).cpu().numpy().tobytes(),
            "attention": pictures.attended(judge or models[0], image_CHW).tobytes(),
            "top": pictures.top(judge, scale_pixels(image_CHW[None])),
            "cases": [
                {
                    "name": done.name, "psnr": done.psnr, "top": done.top,
                    "painted": done.pixels_HWC.tobytes(), "error": done.error_HWC.tobytes(),
                }
                for done in pictures.paint(models, image_CHW, self.hidden, judge)
            ],
        }  # fmt: skip
        normalized = next((trained.name for trained in models if trained.run.norm_pix), None)
        hint = HINTS.get(sum(self.hidden) / len(self.hidden), "")  # type: ignore[call-overload]
        with self.hold_sync():  # the page hears of both at once
            self.picture = picture
            self.message = NORMALIZED.format(name=normalized) if normalized else hint
        if self.still_output:
            self.still_output.update(self.still(), raw=True)

    def answer(self, _: Any, asked: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        """Do what a message of the page asks for."""
        with self.telling_errors():
            if asked["ask"] == "mask":
                try:
                    self.mask(asked["how"], asked["ratio"])
                finally:
                    self.send({"answered": "mask"})  # the page asks for the next one then
            elif asked["ask"] == "own":
                self.open_own(bytes(buffers[0]))
            elif asked["ask"] == "neighbours":
                self.find_neighbours()

    def mask(self, how: str, ratio: float = 0.75) -> None:
        """Draw a new mask; ``how`` and ``ratio`` as in :func:`~mae_core.explore.pictures.hidden_patches`.

        Where there is no such mask, as grid masks of an odd number of patches, the old one stays, with a message.
        """
        self.draws += 1
        try:
            hidden = pictures.hidden_patches(how, ratio, self.about["grid"], self.draws, self.hidden)
        except ValueError as error:
            self.say(str(error))
        else:
            self.hidden = hidden

    def open_own(self, content: bytes) -> None:
        """Show a picture from the bytes of a file; what is no image leaves everything as it is, with a message."""
        try:
            self.own = pictures.own_picture(content, self.about["side"])
        except ParameterError as error:
            self.say(str(error))
            return
        if self.image == OWN:
            self.neighbours = []
            self.paint()
        self.image = OWN

    def say(self, sentence: str) -> None:
        """Show a message, even if it is the one that is there."""
        self.message = ""  # the page hears of changes only
        self.message = f"{sentence[0].upper()}{sentence[1:]}."

    def find_neighbours(self) -> None:
        """Look for the nearest training images, by the features of the first model's pre-trained encoder."""
        trained = self.models[0]
        encoder = probes.PatchMean(trained.model.encoder)
        if self.features is None:
            train = training_images(self.run, N_SEARCHED, self.about["side"])
            if train is None:
                self.say(f"the training images are no longer in {self.run.data_dir}: put them back, and ask again")
                return
            (train,) = place([train], "host", trained.device)
            train_nD = class_scores(encoder, train, trained.run, trained.device)
            mean_D, deviation_D = probes.moments(train_nD)
            self.features = train, (train_nD - mean_D) / deviation_D, mean_D, deviation_D
        train, train_nD, mean_D, deviation_D = self.features
        with torch.no_grad():
            query_1D = (encoder(scale_pixels(self.pixels_CHW[None]).to(trained.device)) - mean_D) / deviation_D
        ids = probes.nearest(train_nD, query_1D, min(N_FOUND, len(train_nD)))[1][0].tolist()
        names = [train.classes[int(train.labels_n[i])] if train.classes else "" for i in ids]
        found = [(name, train.images_nCHW[i].permute(1, 2, 0).numpy()) for name, i in zip(names, ids, strict=True)]
        self.neighbours = []  # the page hears of changes only
        self.neighbours = [{"name": name, "pixels": pixels_HWC.tobytes()} for name, pixels_HWC in found]

    @property
    def told(self) -> str:
        """The image and its mask, such as ``image 4 of 10,000: cat, 48 of 64 patches hidden``."""
        return f"{self.picture['title']}, {sum(self.hidden)} of {len(self.hidden)} patches hidden"

    def _repr_mimebundle_(self, **about: Any) -> Any:
        """As every widget's, but the plain text, which untrusted notebooks show, says what there is to see."""
        bundle, metadata = super()._repr_mimebundle_(**about)  # type: ignore[misc]
        return bundle | {"text/plain": self.told}, metadata

    @property
    def to_try(self) -> str:
        """Ideas of what to try next, as Markdown."""
        classify = TO_CLASSIFY if pictures.judge(self.models) else ""
        return TO_TRY.format(seen=self.models[0].seen, classify=classify)

    def still(self) -> dict[str, str]:
        """The present pictures as a display bundle, for where no kernel runs: a reopened, printed or converted notebook.

        The page's style hides its HTML beside the widget where that is alive.
        """
        side, picture = self.about["side"], self.picture

        def tile(title: str, content: bytes) -> tuple[str, Any]:
            return title, pictures.as_pixels(content, side)

        tiles = [tile("original", picture["original"]), ("masked", pictures.masked_pixels(self.pixels_CHW, self.hidden))]
        for case in picture["cases"]:
            quality = "" if case["psnr"] is None else f", {case['psnr']:.1f} dB"
            tiles += [tile(case["name"] + quality, case["painted"]), tile("error", case["error"])]
        png = base64.b64encode(pictures.still(tiles)).decode()
        alt = f"{self.told}: original, masked, reconstructions"
        html = f'<img class="mae-still" alt="{escape(alt)}" src="data:image/png;base64,{png}">'
        return {"text/html": html, "text/plain": ""}

    def show(self) -> None:
        """Display the widget, and a still picture that follows it and remains in the saved notebook."""
        display(self)
        self.still_output = display(self.still(), raw=True, display_id=True)


def explorer(run: ExploreParameters) -> Explorer:
    """The widget for these parameters.

    Raises:
        ParameterError: if there are no trained models.
        MissingDataError: if images are named that are not there.

    From here on torch uses one thread: a small model gains nothing from more on one image, and on a busy machine waits for
    them (LOG.md has the timings).
    """
    models = trained_models(run)
    torch.set_num_threads(1)
    shown = run.shown_with(models[0].run)
    side = models[0].run.image_size
    if run.dataset != "auto":
        check_at_hand(shown, side)
    view = Explorer(models, images_to_show(shown, models[0]), shown)
    if run.data_dir and not at_hand(shown, side):
        view.say(f"the images of the training are not in {run.data_dir!r}: these are the pictures that were saved with it")
    return view
