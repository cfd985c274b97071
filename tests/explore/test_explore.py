"""The explorer without a browser: the models it opens, what it paints, and what it answers to its page."""

import dataclasses
import io
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from photos import held
from PIL import Image

from mae_core.data.images import load, scale_pixels
from mae_core.errors import MissingDataError, ParameterError
from mae_core.evaluation.classification import class_attention
from mae_core.evaluation.reconstruction import reconstruct
from mae_core.explore import trained as on_disk
from mae_core.explore.explorer import OWN, Explorer, explorer
from mae_core.explore.pictures import comparison, hidden_patches, mask_of, own_picture, paint
from mae_core.explore.trained import FULL, KEPT, ExploreParameters, images_to_show, keep, trained_models
from mae_core.model.masking import sample_mask
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.results import load_sheet, read_json
from mae_core.study.tensors import load_tensors
from mae_core.training.runs import finetune, pretrain

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "explore.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory, few_shapes_dir):
    """A folder with a small study: two cases, one of them fine-tuned."""
    folder = tmp_path_factory.mktemp("study")
    tiny = {"width": 24, "depth": 1, "decoder_width": 24, "train_images": 512, "epochs": 1, "threads": 1}
    tiny |= {"data_dir": str(few_shapes_dir), "study": "mine"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for case, strategy in (("random-75", "random"), ("grid-75", "grid")):
            pretrain(PretrainParameters(case=case, mask_strategy=strategy, **tiny))
        weights = f"outputs/mine/random-75/seed0/pretrain/{FULL}"
        finetune(FinetuneParameters(case="random-75", weights=weights, probes=False, **tiny))
    return folder


@pytest.fixture
def run(study, monkeypatch, few_shapes_dir):
    monkeypatch.chdir(study)
    return ExploreParameters(study="mine", dataset="shapes", data_dir=str(few_shapes_dir), device="cpu")


@pytest.fixture
def view(run):
    return explorer(run)


def reconstruction(view, case=0):
    return view.picture["cases"][case]["painted"]


def test_a_classifier_on_the_mean_of_patches_is_explored_as_it_was_trained(study, run, tmp_path, monkeypatch):
    shutil.copytree(study / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    _, about = load_tensors(tmp_path / "outputs/mine/random-75/seed0/finetune" / FULL)
    model = finetune(FinetuneParameters.check(about | {"pooling": "mean"})).eval()
    view = explorer(run)
    image_1CHW = scale_pixels(view.pixels_CHW[None])
    with torch.no_grad():
        expected_K = model(image_1CHW).softmax(dim=1)[0]
    assert view.picture["top"][0][1] == pytest.approx(expected_K.max().item(), rel=1e-4)
    maps_BCHW = class_attention(model.encoder, image_1CHW)
    assert class_attention(view.models[0].encoder, image_1CHW).allclose(maps_BCHW, atol=1e-5)


def test_kept_weights_give_the_same_pictures(study, run, tmp_path):
    (full,) = trained_models(run.model_copy(update={"cases": ["grid-75"]}))
    folder = tmp_path / "pretrain"
    folder.mkdir()
    for name in (FULL, "metrics.json"):
        (folder / name).write_bytes((full.folder / "pretrain" / name).read_bytes())
    path = keep(folder)
    assert path.stat().st_size < 0.6 * (folder / FULL).stat().st_size
    kept, about = on_disk.open_autoencoder(path, torch.device("cpu"))
    assert about == full.run
    image_1CHW = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = sample_mask("random", 0.75, 1, 8)
    for mine, theirs in zip(
        reconstruct(kept, image_1CHW, mask, about), reconstruct(full.model, image_1CHW, mask, full.run), strict=True
    ):
        assert (mine - theirs).abs().max() < 0.04  # of a range of 2; bfloat16 has eight bits
    (folder / FULL).unlink()
    assert on_disk.weights_in(folder) == path
    with pytest.raises(ParameterError, match="does not exist: train the run first"):
        keep(folder)


def test_the_published_weights_are_those_of_the_published_pictures():
    """They reconstruct the study's own ten pictures nearly as those show them: bfloat16, and a repetition (LOG.md)."""
    found = sorted((ROOT / "outputs" / "laptop").glob(f"*/seed0/pretrain/{KEPT}"))
    assert found
    for path in found:
        model, about = on_disk.open_autoencoder(path, torch.device("cpu"))
        original, masked, painted = load_sheet(path.with_name("pictures.png"), 3)
        compared = 0
        hidden_nHW = (masked == 128).all(-1)
        for image_HWC, hidden_HW, published in zip(original, hidden_nHW, painted, strict=True):
            hidden = hidden_HW[::4, ::4].flatten().tolist()
            if sum(hidden) != round(64 * about.mask_ratio):
                continue  # a patch of the image itself is grey
            models = [on_disk.Trained(about, model, None, path.parents[1])]
            (mine,) = paint(models, torch.from_numpy(image_HWC.copy()).permute(2, 0, 1), hidden)
            assert np.abs(mine.pixels_HWC.astype(float) - published).mean() < 6
            compared += 1
        assert compared > 5


def test_what_the_models_saw_follows_their_data(view):
    assert "The models saw ten kinds of drawn shapes only." in view.to_try
    for run, words in (
        ({"dataset": "cifar10"}, "ten classes of CIFAR-10"),
        ({"dataset": "folder", "data_dir": "/far/away/birds"}, "your images in `birds`"),
        ({"dataset": "folder", "data_dir": "."}, "images of your own"),
    ):
        trained = dataclasses.replace(view.models[0], run=view.models[0].run.model_copy(update=run))
        assert trained.seen == words
    sources = "".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    assert "show_text(view.to_try)" in sources
    assert "CIFAR-10" not in sources


def test_what_is_on_disk_is_opened_and_what_is_not_is_named(run):
    both = trained_models(run)
    assert [found.name for found in both] == ["random-75", "grid-75"]
    assert [found.classifier is not None for found in both] == [True, False]
    assert not both[0].model.training
    with pytest.raises(
        ParameterError, match=r"no weights in outputs/mine/block-75/seed0/: .*weights in outputs/mine \(seed 0\)$"
    ):
        trained_models(run.model_copy(update={"cases": ["block-75"]}))
    with pytest.raises(ParameterError, match=r"no weights in outputs/other/: "):
        trained_models(run.model_copy(update={"study": "other"}))


def test_damaged_weights_are_told_in_one_sentence(run, tmp_path):
    path = tmp_path / FULL
    path.write_bytes(b"no tensors")
    with pytest.raises(ParameterError, match="is damaged"):
        on_disk.open_autoencoder(path, torch.device("cpu"))
    tuned = on_disk.Path("outputs/mine/random-75/seed0/finetune") / FULL
    with pytest.raises(ParameterError, match=r"(?s)cannot be opened \(.*\): train that run again, or open other cases"):
        on_disk.open_autoencoder(tuned, torch.device("cpu"))
    with pytest.raises(ParameterError, match=r"(?s)cannot be opened \(.*\): train that run again, or open other cases"):
        on_disk.open_classifier(tuned.parents[1] / "pretrain" / FULL, torch.device("cpu"))


def test_a_small_model_is_trained_once(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trainings = []

    def brief(wanted):
        trainings.append(wanted)
        pretrain(wanted)

    monkeypatch.setattr(on_disk, "pretrain", brief)
    small = run.model_copy(update={"train": True, "epochs": 1})
    for _ in range(2):
        (model,) = trained_models(small)
    assert len(trainings) == 1
    assert model.folder == on_disk.Path("outputs/explore/random-75/seed0")
    on_disk.Path("outputs/explore/random-75/seed0/pretrain/parameters.json").write_text("{}", encoding="utf-8")
    trained_models(small)
    assert len(trainings) == 2


def test_a_small_model_of_a_few_images_is_trained_anew_where_they_changed(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for i in range(30):
        path = tmp_path / "own" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (8 * i, 0, 0)).save(path)
    own = run.model_copy(update={"train": True, "epochs": 1, "dataset": "folder", "data_dir": str(tmp_path / "own")})
    first, again = (read_json(trained_models(own)[0].folder / "pretrain" / "provenance.json") for _ in range(2))
    assert first == again
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "own" / "blue.png")
    assert read_json(trained_models(own)[0].folder / "pretrain" / "provenance.json")["images"] != first["images"]


def test_what_is_missing_of_a_copied_run_is_named(study, run, tmp_path, monkeypatch):
    shutil.copytree(study / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    results = Path("outputs/mine/random-75/seed0")
    (results / "pretrain" / "pictures.png").unlink()
    (results / "finetune" / "pictures.png").unlink()
    nowhere = run.model_copy(update={"dataset": "cifar10", "data_dir": str(tmp_path)})
    with pytest.raises(MissingDataError, match=r"neither the images of cifar10 in .* nor .*pictures.png is there: name"):
        images_to_show(nowhere, trained_models(run)[0])
    (results / "finetune" / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"metrics.json is damaged"):
        trained_models(run)
    (results / "finetune" / "metrics.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"does not name the classes of the classifier beside it"):
        trained_models(run)


def test_without_the_data_set_the_studys_own_pictures_are_shown(run, tmp_path):
    nowhere = run.model_copy(update={"dataset": "cifar10", "data_dir": str(tmp_path)})
    first = trained_models(run)[0]
    shown, all_of_them = images_to_show(nowhere, first), images_to_show(run, first)
    assert len(shown) == 10
    assert torch.equal(shown.images_nCHW, all_of_them.images_nCHW[:10])
    assert torch.equal(shown.labels_n, all_of_them.labels_n[:10])
    assert not list(tmp_path.iterdir())
    unlabelled = images_to_show(nowhere, trained_models(run)[1])
    assert Explorer(trained_models(run)[1:], unlabelled, nowhere).title == "image 1 of 10"


def test_the_images_are_those_of_the_models_training_unless_others_are_named(study, run):
    usual = ExploreParameters(study="mine", device="cpu")
    shown = usual.shown_with(trained_models(usual)[0].run)
    assert (shown.dataset, shown.data_dir) == ("shapes", run.data_dir)
    assert explorer(usual).about["n_images"] == 400
    assert explorer(usual).about["train"]
    birds = PretrainParameters(dataset="folder", data_dir="birds")
    for given, expected in (
        ({"dataset": "cifar10"}, ("cifar10", "data")),
        ({"data_dir": "more"}, ("folder", "more")),
        ({"dataset": "folder"}, ("folder", "birds")),
    ):
        shown = usual.model_copy(update=given).shown_with(birds)
        assert (shown.dataset, shown.data_dir) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "folder", "data_dir": "my-images"}, "data_dir is 'my-images': there is no such folder; it must hold"),
        ({"dataset": "cifar100"}, "dataset is 'cifar100', and 'data' has no cifar-100-python: name another folder, or"),
    ],
)
def test_images_that_are_named_and_not_there_are_told(study, run, tmp_path, monkeypatch, given, message):
    shutil.copytree(study / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDataError, match=message):
        explorer(ExploreParameters(study="mine", device="cpu", **given))


def test_a_folder_without_the_images_of_the_training_is_told_beside_their_pictures(run):
    view = explorer(run.model_copy(update={"dataset": "auto", "data_dir": "elsewhere"}))
    assert len(view.images) == 10
    assert view.message.startswith("The images of the training are not in 'elsewhere': these are the pictures")
    view.image = 1
    assert view.message == ""


def test_a_small_model_is_trained_before_cuda_starts(run, monkeypatch):
    """Which GPU a run may use can be chosen only before."""
    asked = []
    monkeypatch.setattr(on_disk, "small_model", lambda run: asked.append("train") or Path("nowhere"))
    monkeypatch.setattr(on_disk, "choose_device", lambda name: asked.append("device"))
    monkeypatch.setattr(on_disk, "open_run", lambda folder, device: None)
    monkeypatch.setattr(on_disk, "cut", lambda found: None)
    trained_models(run.model_copy(update={"train": True}))
    assert asked == ["train", "device"]


def test_nothing_is_drawn_where_the_shapes_are_missing(run, tmp_path):
    nowhere = run.model_copy(update={"data_dir": str(tmp_path)})
    assert len(images_to_show(nowhere, trained_models(run)[0])) == 10
    assert not list(tmp_path.iterdir())


def test_the_studys_own_pictures_have_the_labels_that_belong_to_them(study, run, tmp_path, monkeypatch):
    """A fine-tuning may have evaluated other images, as with ``holdout``: its labels are of its own pictures."""
    shutil.copytree(study / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    tuned = tmp_path / "outputs/mine/random-75/seed0/finetune"
    Image.fromarray(np.asarray(Image.open(tuned / "pictures.png"))[:, ::-1]).save(tuned / "pictures.png")
    nowhere = run.model_copy(update={"data_dir": "nowhere"})
    first = trained_models(nowhere)[0]
    shown = images_to_show(nowhere, first)
    assert np.array_equal(shown.images_nCHW.permute(0, 2, 3, 1).numpy(), load_sheet(tuned / "pictures.png", 1)[0])
    (tuned / "pictures.png").unlink()
    assert set(images_to_show(nowhere, first).labels_n.tolist()) == {-1}


def test_cases_with_other_patches_are_refused_if_named(study, run, tmp_path, monkeypatch, few_shapes_dir):
    shutil.copytree(study / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    few = {"train_images": 64, "epochs": 1, "threads": 1, "data_dir": str(few_shapes_dir), "study": "mine"}
    pretrain(PretrainParameters(case="coarse", patch_size=8, width=24, depth=1, decoder_width=24, **few))
    assert [found.name for found in trained_models(run)] == ["random-75", "grid-75"]
    with pytest.raises(ParameterError, match=r"random-75 \(images of 32 pixels, patches of 4\) and coarse \(32 and 8\)"):
        trained_models(run.model_copy(update={"cases": ["random-75", "coarse"]}))


def test_a_model_of_normalized_patches_says_what_it_gets_from_the_original(run):
    models = trained_models(run)
    normalized = models[1].run.model_copy(update={"norm_pix": True})
    models[1] = dataclasses.replace(models[1], run=normalized)
    view = Explorer(models, images_to_show(run, models[0]), run)
    assert view.message.startswith("grid-75 predicts normalized patches: ")
    assert [case["psnr"] is None for case in view.picture["cases"]] == [False, True]
    view.mask("all")
    assert "without having seen anything" not in view.message
    assert comparison(models, view.pixels_CHW).axes
    view.chosen = ["random-75"]
    assert "without having seen anything" in view.message


def test_what_goes_wrong_is_told_on_the_page(view, monkeypatch):
    monkeypatch.setattr("mae_core.explore.explorer.training_images", lambda *_: None)
    view.answer(None, {"ask": "neighbours"}, [])
    assert view.message == f"The training images are no longer in {view.run.data_dir}: put them back, and ask again."

    def damaged(*_):
        raise MissingDataError("data_batch_1 is damaged: delete it")

    monkeypatch.setattr("mae_core.explore.explorer.training_images", damaged)
    with pytest.raises(MissingDataError):
        view.answer(None, {"ask": "neighbours"}, [])
    assert view.message == "Data_batch_1 is damaged: delete it."
    monkeypatch.setattr("mae_core.explore.pictures.attended", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        view.set_state({"image": 4})
    assert view.message == "This failed (ZeroDivisionError: division by zero)."


def test_a_run_that_is_trained_anew_beside_it_disturbs_no_stroke(study, run, tmp_path, monkeypatch):
    shutil.copytree(study / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    view = explorer(run)
    shutil.rmtree(tmp_path / "outputs")
    before = reconstruction(view)
    view.mask("random")
    assert reconstruction(view) != before


def test_training_images_go_to_the_models_device(view, monkeypatch):
    """Their labels say where they go, batch by batch; a device that computes nothing stands in for a GPU."""
    placed = []

    def class_scores(encoder, split, run, device):
        placed.append((split, device))
        raise StopIteration

    monkeypatch.setattr("mae_core.explore.explorer.class_scores", class_scores)
    monkeypatch.setattr(on_disk.Trained, "device", torch.device("meta"))
    with pytest.raises(StopIteration):
        view.find_neighbours()
    ((split, device),) = placed
    assert (device.type, split.labels_n.device.type, split.images_nCHW.device.type) == ("meta", "meta", "cpu")


@pytest.mark.parametrize(
    ("how", "ratio", "n"), [("random", 0.4, 26), ("block", 0.5, 32), ("grid", 0.1, 48), ("all", 0, 64)]
)
def test_a_button_hides_an_exact_number_of_patches(view, how, ratio, n):
    view.answer(None, {"ask": "mask", "how": how, "ratio": ratio}, [])
    assert sum(view.hidden) == n
    view.answer(None, {"ask": "mask", "how": "invert", "ratio": ratio}, [])
    assert sum(view.hidden) == 64 - n
    view.answer(None, {"ask": "mask", "how": "none", "ratio": ratio}, [])
    assert sum(view.hidden) == 0


def test_any_mask_is_painted_and_visible_patches_stay(run, view):
    image_CHW = view.pixels_CHW
    for hidden in ([i in (0, 9, 63) for i in range(64)], [i != 5 for i in range(64)], [True] * 64, [False] * 64):
        assert mask_of(hidden).masked_BN[0].tolist() == hidden
        (painted,) = paint(view.models[:1], image_CHW, hidden)
        hidden_HW = np.array(hidden).reshape(8, 8).repeat(4, 0).repeat(4, 1)
        original_HWC = image_CHW.permute(1, 2, 0).numpy()
        assert np.array_equal(painted.pixels_HWC[~hidden_HW], original_HWC[~hidden_HW])
        assert not painted.error_HWC[~hidden_HW].sum(0)[0]
        if not any(hidden):
            assert painted.psnr is None
            continue
        error = (painted.pixels_HWC[hidden_HW].astype(float) - original_HWC[hidden_HW]) ** 2
        assert painted.psnr == pytest.approx(10 * np.log10(255**2 / error.mean()), abs=0.05)


def test_each_change_of_the_page_gives_new_pictures(view):
    for name, value in {"hidden": hidden_patches("random", 0.5, 8, seed=3), "image": 5, "chosen": ["grid-75"]}.items():
        before = reconstruction(view)
        view.set_state({name: value, "stroke": view.stroke + 1})
        assert reconstruction(view) != before
        assert view.picture["stroke"] == view.stroke
    assert [case["name"] for case in view.picture["cases"]] == ["grid-75"]
    assert view.title.startswith("image 6 of 400: ")
    view.mask("all")
    assert "hidden" in view.message
    view.mask("random")
    assert view.message == ""


def test_the_classifier_names_the_original_and_the_reconstructions(view, run):
    tops = [view.picture["top"], *(case["top"] for case in view.picture["cases"])]
    classes = load("shapes", run.data_dir, train=False).classes
    for top in tops:
        assert len(top) == 3
        assert {name for name, _ in top} <= set(classes)
        shares = [share for _, share in top]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1
    view.mask("none")
    assert view.picture["cases"][0]["top"] == view.picture["top"]  # nothing hidden: the same image
    view.chosen = ["grid-75"]
    assert len(view.picture["cases"][0]["top"]) == 3


def file_of(image, form, **more):
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def test_a_picture_of_ones_own_is_upright_square_and_small(view):
    wide = Image.new("RGB", (96, 32), "blue")
    wide.paste("red", (32, 0, 64, 32))
    assert (own_picture(file_of(wide, "PNG"), 32) == torch.tensor([255, 0, 0])[:, None, None]).all()
    halves = Image.new("RGB", (64, 64), "blue")
    halves.paste("red", (0, 0, 64, 32))  # red above
    for orientation, red, blue in ((3, (28, 16), (4, 16)), (6, (16, 28), (16, 4)), (8, (16, 4), (16, 28))):
        picture_CHW = own_picture(file_of(halves, "JPEG", exif=held(orientation), quality=95), 32).int()
        assert picture_CHW[2, *blue] > 200
        assert picture_CHW[0, *red] > 200
    before = reconstruction(view)
    view.answer(None, {"ask": "own"}, [memoryview(file_of(wide.convert("P"), "GIF"))])
    assert view.image == OWN
    assert view.title == "your picture"
    assert reconstruction(view) != before
    again = view.picture["original"]
    view.answer(None, {"ask": "own"}, [memoryview(file_of(halves.convert("L"), "PNG"))])
    assert view.picture["original"] != again
    view.image = 0
    assert reconstruction(view) == before


@pytest.mark.parametrize("content", [b"", b"no image", file_of(Image.new("RGB", (50, 50)), "PNG")[:60]])
def test_a_broken_file_breaks_nothing(view, content):
    before = view.picture
    view.answer(None, {"ask": "own"}, [memoryview(content)])
    told = (
        r"This picture cannot be read: (it is no image in a format that can be read|.*truncated.*); choose another, or .*"
    )
    assert re.fullmatch(told, view.message)
    assert view.picture is before
    view.image = 2
    assert view.message == ""


def test_neighbours_are_training_images_and_a_copy_finds_itself(view, run):
    train = load("shapes", run.data_dir, limit=20)
    view.own = train.images_nCHW[7]
    view.image = OWN
    assert view.neighbours == []
    view.answer(None, {"ask": "neighbours"}, [])
    assert len(view.neighbours) == 6
    assert view.neighbours[0]["pixels"] == train.images_nCHW[7].permute(1, 2, 0).numpy().tobytes()
    assert view.neighbours[0]["name"] == train.classes[train.labels_n[7]]
    view.image = 0
    assert view.neighbours == []


def test_a_still_picture_follows_the_widget(view, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "mae_core.explore.explorer.display", lambda *data, **about: shown.append(data) or type("", (), {"update": update})()
    )

    def update(self, bundle, raw):
        shown.append(bundle)

    view.show()
    first = view.still()
    assert "data:image/png;base64," in first["text/html"]
    view.image = 3
    assert shown[-1] == view.still() != first


def test_hundreds_of_cells_with_a_widget_end(study, monkeypatch):
    """nbclient can wait forever for output widgets (LOG.md); these cells show the explorer, or change it."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    opening = (
        "from mae_core.explore.explorer import explorer\nfrom mae_core.explore.trained import ExploreParameters\n"
        "view = explorer(ExploreParameters(study='mine', cases=['random-75'], data_dir='nowhere', device='cpu'))"
    )
    more = ["view.image = (view.image + 1) % 10", "view.mask('random')", "view.show()"] * 100
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in [opening, *more]])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    assert len(notebook.cells) == 301
    assert all(cell.outputs for cell in notebook.cells[3::3])
    assert "AnyModel" in str(notebook.metadata.widgets)[:100_000]


def test_a_transparent_picture_is_on_white_and_16_bits_are_scaled():
    def opened(image):
        file = io.BytesIO()
        image.save(file, "PNG")
        return own_picture(file.getvalue(), 8)

    assert (opened(Image.new("RGBA", (16, 16), (0, 0, 0, 0))) == 255).all()
    deep = Image.fromarray(np.full((16, 16), 257 * 100, np.uint16))
    assert (opened(deep) == 100).all()


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """The parameters to explore a model of images of one's own with 7 × 7 patches, one of them for testing."""
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (30, 30), (20 * i, 40, 60)).save(tmp_path / "photos" / f"{i}.png")
    few = {"study": "odd", "dataset": "folder", "data_dir": "photos", "image_size": 28, "batch_size": 4, "epochs": 1}
    pretrain(PretrainParameters(**few, width=24, depth=1, decoder_width=24, threads=1))
    return ExploreParameters(study="odd", dataset="folder", data_dir="photos", device="cpu")


def test_a_model_with_an_odd_number_of_patches_in_a_row_has_no_grid_masks(odd):
    view = explorer(odd)
    before = list(view.hidden)
    view.answer(None, {"ask": "mask", "how": "grid", "ratio": 0.75}, [])
    assert view.hidden == before
    assert view.message.startswith("Grid masking needs an even number")
    figure = comparison(view.models, view.images.images_nCHW[0])
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["random", "block"]


def test_a_few_images_have_as_many_neighbours(odd):
    (Path("photos") / "11.png").unlink()
    for i in range(4, 11):
        (Path("photos") / f"{i}.png").unlink()
    view = explorer(odd)
    view.find_neighbours()
    assert len(view.neighbours) == 3


def test_a_name_of_a_class_is_no_markup(run):
    view = explorer(run)
    view.images = dataclasses.replace(view.images, classes=('5" <b>disk',) * 10)
    view.image = 1
    assert "5&quot; &lt;b&gt;disk" in view.still()["text/html"]


def test_a_device_that_is_not_there_is_explained(run):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ParameterError, match="device is 'cuda': this machine has none"):
        explorer(run.model_copy(update={"device": "cuda"}))
