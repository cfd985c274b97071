"""Encoders of timm and transformers give their outputs here, to 1e-5 in float32, or are refused."""

import errno
import json
import os

import pytest
import torch
import torchvision.transforms.functional as TF
from safetensors.torch import load_file, save_file

from mae_core.errors import ParameterError
from mae_core.evaluation.features import pooled
from mae_core.model.mae import Encoder
from mae_core.model.vit import sincos_positions
from mae_core.study import foreign, hub
from mae_core.study.foreign import find_encoder, settings_sha256
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.study.tensors import save_tensors

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SAME = {"rtol": 1e-5, "atol": 1e-5}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))  # in [0, 1]
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 4}
OF_TRANSFORMERS = {
    "image_size": 32, "patch_size": 4, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 192,
}  # fmt: skip


def shaken(model):
    """The model with random values everywhere: zero biases, unit norms and empty positions would hide a swap."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def of_timm(folder, images=None, name="vit_tiny_patch16_224", **more):
    """A random model of timm and the folder that timm writes for it."""
    model = shaken(timm.create_model(name, pretrained_cfg_overlay=images or {}, **{**SMALL, **more}))
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model


def of_transformers(folder, kind, **more):
    """A random model of transformers and the folder that transformers writes for it."""
    kind = getattr(transformers, kind)
    model = kind(kind.config_class(**{**OF_TRANSFORMERS, **more}))
    shaken(model).save_pretrained(folder)
    return model


def scaled(mean=(0.5,) * 3, std=(0.5,) * 3):
    return TF.normalize(PIXELS, mean, std)


def tokens(path):
    """What our encoder makes of images scaled to [-1, 1], with the weights in a file or folder."""
    found = find_encoder(str(path))
    encoder = Encoder(found.config()).eval()
    encoder.load_state_dict(found.state(found.config()))
    with torch.no_grad():
        return encoder(scaled())


@pytest.mark.parametrize("images", [None, IMAGENET])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"qkv_bias": False},
        {"no_embed_class": True},
        {"num_classes": 0},
        {"patch_size": 8, "num_heads": 3, "depth": 1},
        {"name": "vit_small_patch16_224", "num_heads": None, "embed_dim": 36},
    ],
)
@torch.no_grad()
def test_a_vit_of_timm_gives_its_features_here(tmp_path, more, images):
    theirs = of_timm(tmp_path, images, **more)
    expected = theirs.forward_features(scaled(**(images or {})))
    torch.testing.assert_close(tokens(tmp_path), expected, **SAME)
    torch.testing.assert_close(tokens(tmp_path / "model.safetensors"), expected, **SAME)
    variant = "report" if more.get("qkv_bias") is False else "vit"
    assert find_encoder(str(tmp_path)).variants == (variant,)


@torch.no_grad()
def test_a_vit_of_timm_on_the_mean_of_patches_has_its_norm_after_the_mean(tmp_path):
    theirs = of_timm(tmp_path, global_pool="avg")
    batch, found = scaled(), find_encoder(str(tmp_path))
    encoder = Encoder(found.config()).eval()
    encoder.load_state_dict(found.state(found.config()))
    assert found.pools_mean
    expected = theirs.forward_head(theirs.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(pooled(encoder, batch, "mean", found.pools_mean), expected, **SAME)


@torch.no_grad()
def test_an_mae_of_timm_is_the_papers_variant(tmp_path):
    """Its positions are fixed: sine-cosine, zeros for the class token."""
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL))
    theirs.pos_embed.copy_(sincos_positions(8, 48)[None])
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True)
    assert find_encoder(str(tmp_path)).variants == ("paper", "vit")
    torch.testing.assert_close(tokens(tmp_path), theirs.forward_features(scaled()), **SAME)


@pytest.mark.parametrize("kind", ["ViTMAEForPreTraining", "ViTMAEModel", "ViTModel", "ViTForImageClassification"])
@pytest.mark.parametrize("more", [{"layer_norm_eps": 1e-6}, {"layer_norm_eps": 0.05, "patch_size": 8}])
@torch.no_grad()
def test_a_model_of_transformers_gives_its_features_here(tmp_path, kind, more):
    more = {**more, "mask_ratio": 0.0} if "MAE" in kind else {**more, "qkv_bias": False}
    theirs = of_transformers(tmp_path, kind, **more)
    processor = transformers.ViTImageProcessor(image_mean=list(IMAGENET["mean"]), image_std=list(IMAGENET["std"]))
    processor.save_pretrained(tmp_path)
    base = theirs.vit if hasattr(theirs, "vit") else theirs
    n_patches = (32 // theirs.config.patch_size) ** 2
    order = {"noise": torch.arange(n_patches).expand(3, -1).float()} if "MAE" in kind else {}
    expected = base(scaled(**IMAGENET), **order).last_hidden_state
    torch.testing.assert_close(tokens(tmp_path), expected, **SAME)
    assert find_encoder(str(tmp_path)).shape["norm_eps"] == more["layer_norm_eps"]


def test_an_untouched_vitmae_is_the_papers_variant(vitmae, tmp_path):
    vitmae().save_pretrained(tmp_path)
    assert find_encoder(str(tmp_path)).variants == ("paper", "vit")


@torch.no_grad()
def test_names_of_both_generations_of_transformers_are_read(tmp_path):
    """Version 5 writes the names of version 4; its own names in memory are read, too."""
    theirs = of_transformers(tmp_path / "files", "ViTMAEForPreTraining")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "config.json").write_bytes((tmp_path / "files" / "config.json").read_bytes())
    save_file(theirs.state_dict(), tmp_path / "memory" / "model.safetensors")
    names = [set(load_file(tmp_path / place / "model.safetensors")) for place in ("files", "memory")]
    assert not any("encoder.layer" in name for name in names[1])
    assert any("encoder.layer" in name for name in names[0])
    assert tokens(tmp_path / "files").equal(tokens(tmp_path / "memory"))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_half_precision_files_are_read_exactly(tmp_path, library, precision):
    """The sum of the class token and its position is not rounded again."""
    of_timm(tmp_path) if library == "timm" else of_transformers(tmp_path, "ViTModel", layer_norm_eps=1e-6)
    halves = {name: t.to(precision) for name, t in load_file(tmp_path / "model.safetensors").items()}
    save_file(halves, tmp_path / "model.safetensors")
    found = tokens(tmp_path)
    save_file({name: t.float() for name, t in halves.items()}, tmp_path / "model.safetensors")
    assert found.equal(tokens(tmp_path))


@pytest.mark.parametrize("kind", [FinetuneParameters, PretrainParameters])
@pytest.mark.parametrize("variant", ["report", "paper", "vit"])
def test_what_we_export_we_read_again(tmp_path, kind, variant):
    from tests.study.test_hub import run_of, saved

    run = run_of(kind, variant)
    ours, path = saved(run, tmp_path / "run")
    hub.export(path, tmp_path / "out")
    with torch.no_grad():
        expected = ours.encoder(scaled())
    for place in (path, path.parent, tmp_path / "out", tmp_path / "out" / "transformers.safetensors"):
        torch.testing.assert_close(tokens(place), expected, **SAME)
        found = find_encoder(str(place))
        assert variant in found.variants
        found.check(run.model)
        assert not found.scale


@torch.no_grad()
def test_an_export_on_the_mean_of_patches_is_read_again(tmp_path):
    from tests.study.test_hub import run_of, saved

    run = run_of(FinetuneParameters, "vit", pooling="mean")
    ours, path = saved(run, tmp_path / "run")
    hub.export(path, tmp_path / "out")
    found = find_encoder(str(tmp_path / "out"))
    found.check(run.model)
    assert found.pools_mean
    torch.testing.assert_close(tokens(tmp_path / "out"), ours.encoder(scaled()), **SAME)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"reg_tokens": 2}, "has reg_token, which the encoder of this package does not have"),
        ({"init_values": 0.1}, r"has blocks.0.ls1.gamma, which"),
        ({"qk_norm": True}, r"has blocks.0.attn.[qk]_norm"),
        ({"pre_norm": True}, r"has norm_pre"),
        ({"global_pool": "max"}, "has global_pool max: it must be avg"),
        ({"pos_embed": "none"}, "has no positions, which"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "holds no model of this package, timm"),
        ({"in_chans": 1}, "takes no square colour images in square patches"),
        ({"img_size": (32, 16)}, "takes no square colour images in square patches"),
        ({"img_size": (24, 40), "patch_size": 8}, "takes no square colour images in square patches"),  # 3 × 5 + 1 = 4 × 4
        ({"img_size": (16, 64), "patch_size": 8}, "takes no square colour images in square patches"),  # 2 × 8 = 4 × 4
        ({"proj_bias": False}, "has no blocks.0.attention.proj.bias, which the encoder of this package needs"),
        ({"patch_size": (4, 8)}, "takes no square colour images in square patches"),
        ({"act_layer": "gelu_tanh"}, "has act_layer gelu_tanh: it must be gelu"),
        ({"norm_layer": "rmsnorm"}, "has norm_layer rmsnorm: it must be layernorm|has no norm.bias"),
        (
            {"name": "vit_base_patch16_clip_quickgelu_224", "pre_norm": False},
            "has the architecture vit_base_patch16_clip_quick",
        ),
    ],
)
def test_a_vit_of_timm_that_differs_is_refused(tmp_path, more, message):
    of_timm(tmp_path, **more)
    with pytest.raises(ParameterError, match=message):
        find_encoder(str(tmp_path))


def test_patches_that_are_a_square_only_with_the_class_token_are_refused(tmp_path):
    """3 × 5 patches and the class token have 4 × 4 positions; the library tells that one of them is the token's."""
    of_transformers(tmp_path / "a", "ViTModel", image_size=[24, 40], patch_size=8)
    of_timm(tmp_path / "b", img_size=(24, 40), patch_size=8)
    for path in (tmp_path / "a", tmp_path / "b"):
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        told = {key: value for key, value in config.items() if key not in ("image_size", "model_args", "pretrained_cfg")}
        (path / "config.json").write_text(json.dumps(told), encoding="utf-8")
        with pytest.raises(ParameterError, match="takes no square colour images"):
            find_encoder(str(path))
    of_transformers(tmp_path / "c", "ViTModel", image_size=[16, 64], patch_size=8)
    with pytest.raises(ParameterError, match="takes no square colour images"):
        find_encoder(str(tmp_path / "c"))


def test_an_incomplete_or_other_tensor_is_named(tmp_path):
    of_transformers(tmp_path, "ViTModel")
    path, name = tmp_path / "model.safetensors", "encoder.layer.1.attention.attention.key.bias"
    whole = load_file(path)
    save_file({key: tensor for key, tensor in whole.items() if key != name}, path)
    with pytest.raises(ParameterError, match=r"has blocks.1.attention.qkv.bias of 96 values: .* has 144"):
        find_encoder(str(tmp_path))
    name = "encoder.layer.1.output.dense.weight"
    save_file({key: tensor for key, tensor in whole.items() if key != name}, path)
    with pytest.raises(ParameterError, match=r"has no blocks.1.mlp.2.weight, which the encoder of this package needs"):
        find_encoder(str(tmp_path))


@pytest.mark.parametrize("kind", ["ViTMAEForPreTraining", "ViTModel"])
@pytest.mark.parametrize("activation", ["gelu_new", "relu", "quick_gelu"])
def test_a_model_of_transformers_with_another_activation_is_refused(tmp_path, kind, activation):
    of_transformers(tmp_path, kind, hidden_act=activation)
    with pytest.raises(ParameterError, match=f"has hidden_act {activation}: it must be gelu"):
        find_encoder(str(tmp_path))


def test_other_kinds_of_model_and_file_are_refused(tmp_path):
    of_transformers(tmp_path / "a", "ViTModel")
    config = json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "model_type": "vit_msn"}), encoding="utf-8")
    with pytest.raises(ParameterError, match="has model_type vit_msn: it must be vit or vit_mae"):
        find_encoder(str(tmp_path / "a"))
    (tmp_path / "a" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"config.json is damaged"):
        find_encoder(str(tmp_path / "a"))
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "pytorch_model.bin")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(
        ParameterError, match=r"that folder has no model.safetensors; only whole safetensors files are read"
    ):
        find_encoder(str(tmp_path / "a"))
    save_file({"weight": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(ParameterError, match=r"weights: .*b.safetensors holds no model of this package, timm"):
        find_encoder(str(tmp_path / "b.safetensors"))
    told = {
        b"\x80\x02}q\x00.": r"\(it is a pickle, which can run code: save the model again as safetensors\)",
        b"PK\3\4 and more": r"\(it is a pickle",
        b"version https://git-lfs.github.com/spec/v1\noid": r"\(it is a pointer of Git LFS: fetch the file itself",
        b"": r"\((?!it is)",
        b"no weights at all": r"\((?!it is)",
    }
    for content, words in told.items():
        (tmp_path / "c.pth").write_bytes(content)
        with pytest.raises(ParameterError, match=rf"weights: .*c.pth is damaged, or no safetensors file {words}"):
            find_encoder(str(tmp_path / "c.pth"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("save", [of_timm, lambda folder: of_transformers(folder, "ViTModel")])
def test_what_torch_puts_before_all_names_is_taken_away(tmp_path, save, prefix):
    save(tmp_path)
    expected = find_encoder(str(tmp_path)).tensors
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    found = find_encoder(str(tmp_path)).tensors
    assert all(found[name].equal(expected[name]) for name in found | expected)


def test_another_prefix_is_named(tmp_path):
    of_timm(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({"backbone." + name: tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ParameterError, match=r"has 'backbone\.' before the name of each tensor: save the model alone"):
        find_encoder(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_without_a_value_are_refused(tmp_path, value):
    of_timm(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["blocks.1.mlp.fc1.bias"][3] = value
    save_file(tensors, path)
    with pytest.raises(ParameterError, match=r"values in blocks\.1\.mlp\.0\.bias that are infinite or no numbers"):
        find_encoder(str(tmp_path))


@pytest.mark.parametrize("change", [{"model_args": None}, {"pretrained_cfg": None}, {"pretrained_cfg": {"mean": None}}])
def test_a_setting_without_a_value_counts_as_left_out(tmp_path, change):
    of_timm(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **change}), encoding="utf-8")
    assert find_encoder(str(tmp_path)).shape["width"] == 48


def test_a_setting_of_another_kind_is_told(tmp_path):
    of_timm(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "pretrained_cfg": 3}), encoding="utf-8")
    with pytest.raises(ParameterError, match=r"model.safetensors, or a file beside it, has a value of another kind"):
        find_encoder(str(tmp_path))


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    of_timm(tmp_path)
    monkeypatch.setattr(foreign, "open", refuse, raising=False)
    with pytest.raises(ParameterError, match=r"model.safetensors cannot be read \(Permission denied\): check its name"):
        find_encoder(str(tmp_path))


def test_a_name_that_is_too_long_is_told():
    with pytest.raises(ParameterError, match=r"cannot be read \(File name too long\)"):
        find_encoder(5000 * "x")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"width": 64}, r"width is 64, but .* was trained with 48: set width: 48"),
        ({"depth": 3}, r"depth is 3, but .* was trained with 2: set depth: 2"),
        ({"heads": 2}, r"heads is 2, but .* was trained with 4: set heads: 4"),
        ({"patch_size": 8}, r"patch_size is 8, but .* was trained with 4: set patch_size: 4"),
        ({"norm_eps": 1e-6}, r"norm_eps is 1e-06, but .* was trained with 1e-12: set norm_eps: 1.0e-12"),
        ({"variant": "report"}, r"variant is 'report', but .* is equal to another one: set variant: vit"),
        ({"variant": "paper"}, r"variant is 'paper', but .* is equal to another one: set variant: vit"),
    ],
)
def test_a_mismatch_names_the_parameter_and_the_value_to_set(tmp_path, more, message):
    of_transformers(tmp_path, "ViTMAEForPreTraining", layer_norm_eps=1e-12)
    right = {"variant": "vit", "width": 48, "depth": 2, "heads": 4, "norm_eps": 1e-12}
    found = find_encoder(str(tmp_path))
    found.check(FinetuneParameters(**right).model)
    with pytest.raises(ParameterError, match=message):
        found.check(FinetuneParameters(**{**right, "decoder_width": more.get("width", 48), **more}).model)


def test_another_ratio_of_the_mlp_is_refused(tmp_path):
    of_timm(tmp_path, mlp_ratio=2)
    with pytest.raises(ParameterError, match=r"mlp_ratio is 4.0, but .* was trained with 2.0: choose other weights"):
        find_encoder(str(tmp_path)).check(FinetuneParameters(variant="vit", heads=4).model)


def test_a_file_alone_leaves_the_heads_to_the_run(tmp_path):
    of_timm(tmp_path)
    (tmp_path / "config.json").unlink()
    found = find_encoder(str(tmp_path))
    for heads in (2, 4):
        found.check(FinetuneParameters(variant="vit", heads=heads).model)
    with pytest.raises(ParameterError, match=r"does not tell its number of heads: put its config.json beside it"):
        found.config()


def test_a_scale_of_images_that_is_assumed_is_told(tmp_path):
    of_timm(tmp_path / "a", IMAGENET)
    of_transformers(tmp_path / "b", "ViTModel")
    assert not find_encoder(str(tmp_path / "a")).scale
    (tmp_path / "a" / "config.json").unlink()
    for place, missing in (("a", "config.json with mean and std"), ("b", "preprocessor_config.json")):
        sentence = f"no {missing} beside the weights, so images are scaled to [-1, 1]"
        assert find_encoder(str(tmp_path / place)).scale == sentence
    transformers.ViTImageProcessor().save_pretrained(tmp_path / "b")
    assert not find_encoder(str(tmp_path / "b")).scale


@torch.no_grad()
def test_images_that_transformers_only_rescales_are_only_rescaled(tmp_path):
    theirs = of_transformers(tmp_path, "ViTModel", layer_norm_eps=1e-6)
    transformers.ViTImageProcessor(do_normalize=False).save_pretrained(tmp_path)
    torch.testing.assert_close(tokens(tmp_path), theirs(PIXELS).last_hidden_state, **SAME)


@pytest.mark.parametrize("more", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_images_that_transformers_rescales_otherwise_are_refused(tmp_path, more):
    of_transformers(tmp_path, "ViTModel")
    transformers.ViTImageProcessor(**more).save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match=r"does not rescale images by 1/255: do_rescale must be true"):
        find_encoder(str(tmp_path))


@pytest.mark.parametrize("shape", [(48, 768), (48, 3, 2, 8, 8)])
def test_a_patch_embedding_of_another_kind_is_refused(tmp_path, shape):
    of_timm(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"patch_embed.proj.weight": torch.zeros(shape)}, path)
    with pytest.raises(ParameterError, match="takes no square colour images in square patches"):
        find_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pretrain/metrics.json"], "that folder has one of each stage: name .*seed0/pretrain"),
        (["checkpoint.safetensors"], "that run has not finished and has no weights.safetensors yet: let it finish first"),
        (["metrics.json", "provenance.json"], "that run's weights.safetensors is not there: train it again, or name"),
        (["model.safetensors.index.json"], "its weights are in several files: .* with a larger max_shard_size"),
        (["pytorch_model.bin"], "that folder has no model.safetensors; only whole safetensors files are read"),
    ],
)
def test_a_folder_without_weights_is_told_by_what_it_has(tmp_path, files, message):
    for name in files:
        (tmp_path / "seed0" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "seed0" / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ParameterError, match=message):
        find_encoder(str(tmp_path / "seed0"))


def test_settings_beside_weights_have_a_checksum(tmp_path):
    of_transformers(tmp_path, "ViTModel")
    before = settings_sha256(str(tmp_path))
    assert before == settings_sha256(str(tmp_path / "model.safetensors"))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}', encoding="utf-8")
    assert settings_sha256(str(tmp_path)) != before
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "config.json").unlink()
    assert settings_sha256(str(tmp_path)) == ""


def test_a_checkpoint_is_no_finished_run(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, {"model.encoder.norm.weight": torch.zeros(1)}, {"elapsed": 0.0})
    with pytest.raises(
        ParameterError, match=r"checkpoint.* holds no model of a finished run: name its weights.safetensors"
    ):
        find_encoder(str(path))


def test_an_old_file_of_ours_has_the_epsilon_of_its_time(tmp_path):
    """Files of runs before norm_eps was a parameter do not name it."""
    run = FinetuneParameters()
    about = {name: value for name, value in run.flat().items() if name != "norm_eps"}
    save_tensors(tmp_path / "a.safetensors", Encoder(run.model).state_dict(prefix="encoder."), about)
    found = find_encoder(str(tmp_path / "a.safetensors"))
    found.check(run.model)
    with pytest.raises(ParameterError, match=r"norm_eps is 0.1, but"):
        found.check(FinetuneParameters(norm_eps=0.1).model)
