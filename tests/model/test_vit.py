import shutil
import types

import pytest
import torch
import torch.nn.functional as F

from mae_core.model import vit
from mae_core.model.vit import (
    Attention,
    Block,
    ExplicitAttention,
    Linear,
    join_heads,
    onednn_linear,
    patchify,
    resize_positions,
    sincos_positions,
    split_heads,
    unpatchify,
)


def test_unpatchify_undoes_patchify():
    images = torch.randn(3, 3, 32, 32)
    for patch_size in (1, 2, 4, 8, 16, 32):
        patches = patchify(images, patch_size)
        assert patches.shape == (3, (32 // patch_size) ** 2, 3 * patch_size**2)
        assert unpatchify(patches, patch_size).equal(images)


def test_patches_come_row_by_row_with_colours_last():
    image = torch.arange(3 * 16).reshape(1, 3, 4, 4).float()
    first, second = patchify(image, 2)[0, :2].reshape(2, 2, 2, 3)
    assert first[1, 0].tolist() == image[0, :, 1, 0].tolist()
    assert second[0, 1].tolist() == image[0, :, 0, 3].tolist()


def test_positions_are_those_of_the_paper(vitmae):
    theirs = vitmae()
    for width, positions in ((48, theirs.vit.embeddings.position_embeddings), (32, theirs.decoder.decoder_pos_embed)):
        torch.testing.assert_close(sincos_positions(8, width), positions[0].detach(), rtol=0, atol=1e-6)


def test_attention_is_scaled_dot_product_attention():
    torch.manual_seed(0)
    attention, x = Attention(48, 3, qkv_bias=True), torch.randn(2, 10, 48)
    q, k, v = attention.qkv(x).reshape(2, 10, 3, 3, 16).permute(2, 0, 3, 1, 4)
    expected = attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 10, 48))
    torch.testing.assert_close(attention(x), expected)


def test_a_block_adds_attention_and_mlp_of_the_normed_input():
    torch.manual_seed(0)
    block, x = Block(32, 2, 4.0, False, 1e-6), torch.randn(2, 5, 32)
    middle = x + block.attention(F.layer_norm(x, (32,), eps=1e-6))
    first, gelu, last = block.mlp
    assert gelu.approximate == "none"
    expected = middle + last(F.gelu(first(F.layer_norm(middle, (32,), eps=1e-6))))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("queries", [slice(None), slice(2, None), slice(1)])
def test_the_written_out_gradient_of_explicit_attention_is_right(queries):
    qkv_BTE = torch.randn(2, 5, 3 * 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ExplicitAttention.apply(x, 2, queries), qkv_BTE)
    q, k, v = split_heads(qkv_BTE, 3, 2)
    fused = join_heads(F.scaled_dot_product_attention(q[:, :, queries], k, v))
    assert torch.allclose(ExplicitAttention.apply(qkv_BTE, 2, queries), fused)


@pytest.mark.parametrize("queries", [slice(None), slice(2, None), slice(1)])
def test_explicit_attention_is_the_plain_formula_compiled_or_not(queries):
    generator = torch.Generator().manual_seed(0)
    qkv_BTE = torch.randn(3, 7, 3 * 16, generator=generator).requires_grad_()
    q, k, v = split_heads(qkv_BTE, 3, 2)
    plain = join_heads((q[:, :, queries] @ k.mT / 8**0.5).softmax(dim=-1) @ v)
    weights_BQD = torch.randn(plain.shape, generator=generator)
    expected = plain, torch.autograd.grad(plain, qkv_BTE, weights_BQD)[0]
    compiled = torch.compile(lambda *words: ExplicitAttention.apply(*words), backend="aot_eager", fullgraph=True)
    for attend in (ExplicitAttention.apply, compiled):
        found = attend(qkv_BTE, 2, queries)
        gradient = torch.autograd.grad(found, qkv_BTE, weights_BQD)[0]
        torch.testing.assert_close((found, gradient), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(onednn_linear() is None, reason="this processor has no bfloat16")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("sizes", [(16, 64), (64, 16)])
def test_onednns_linear_layer_is_torchs(sizes, added, bias):
    generator = torch.Generator().manual_seed(0)
    layer = Linear(*sizes, bias=bias).bfloat16()
    x = torch.randn(4, 9, sizes[0], generator=generator).bfloat16().requires_grad_()
    more, grad = (torch.randn(4, 10, sizes[1], generator=generator).bfloat16()[:, 1:] for _ in range(2))
    given = [more.requires_grad_()] if added else []

    def gradients(output):
        return torch.autograd.grad(output, [x, *given, *layer.parameters()], grad)

    expected = sum(given, F.linear(x, layer.weight, layer.bias))
    found = layer(x, *given)
    ours, theirs = gradients(found), gradients(expected)
    for mine, torchs in zip((found, *ours), (expected, *theirs), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - torchs).norm() < 0.01 * torchs.norm()
    assert ours[1 + added].is_contiguous()  # the weight's: AdamW's fused step mistakes a transposed gradient


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_linear_layer_in_bfloat16_can_be_compiled():
    layer, x, more = Linear(16, 32).bfloat16(), torch.randn(4, 16).bfloat16(), torch.randn(4, 32).bfloat16()
    compiled = torch.compile(layer)(x, more)
    compiled.sum().backward()
    assert (compiled - layer(x, more)).norm() < 0.01 * compiled.norm()


@pytest.mark.parametrize("queries", [slice(None), slice(3, None), slice(1)])
def test_a_block_computes_the_wanted_tokens_alone(queries):
    torch.manual_seed(0)
    block, x_BTD = Block(32, 2, 4.0, False, 1e-6), torch.randn(2, 7, 32)
    torch.testing.assert_close(block(x_BTD, queries), block(x_BTD)[:, queries])


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_fuses_attention_where_that_is_faster(monkeypatch, dtype, tiles):
    fused = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: fused.append(1) or real(*qkv))
    monkeypatch.setattr(vit, "HAS_TILES", tiles)
    attention, x_BTD = Attention(8, 2, qkv_bias=False).to(dtype), torch.randn(1, 4, 8, dtype=dtype)
    trained = attention(x_BTD)
    assert not fused
    with torch.no_grad():
        evaluated = attention(x_BTD)
    assert bool(fused) == (dtype == torch.float32 or tiles)
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize(
    ("kind", "trained", "fused"),
    [
        ("explicit", True, False), ("explicit", False, False), ("fused", True, True), ("fused", False, True),
        ("auto", True, False), ("auto", False, True),
    ],
)  # fmt: skip
def test_a_block_has_the_kind_of_attention_that_was_asked_for(monkeypatch, kind, trained, fused):
    calls, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: calls.append(1) or real(*qkv))
    block = Block(8, 2, 4.0, False, 1e-6, kind)
    with torch.set_grad_enabled(trained):
        block(torch.randn(1, 4, 8))
    assert len(calls) == fused


def test_other_devices_train_with_fused_attention(monkeypatch):
    calls, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: calls.append(1) or real(*qkv))
    with torch.device("meta"):
        Block(8, 2, 4.0, False, 1e-6)(torch.randn(1, 4, 8))
    assert calls


def test_a_block_has_the_widths_and_the_eps_that_were_asked_for():
    block = Block(8, 2, 2.5, True, 1e-3)
    assert [tuple(p.shape) for p in block.mlp.parameters()] == [(20, 8), (20,), (8, 20), (8,)]
    assert block.norm1.eps == block.norm2.eps == 1e-3
    assert block.attention.qkv.bias is not None
    assert Block(8, 2, 2.5, False, 1e-3).attention.qkv.bias is None


def test_only_bfloat16_on_a_cpu_goes_through_onednn_and_not_while_it_is_compiled(monkeypatch):
    calls = []
    monkeypatch.setattr(vit, "ONEDNN_LINEAR", True)
    monkeypatch.setattr(vit.OneDNNLinear, "apply", lambda *words: calls.append(1))
    for device, dtype, compiles, wanted in (
        ("cpu", torch.bfloat16, False, 1), ("cpu", torch.float32, False, 0), ("meta", torch.bfloat16, False, 0),
        ("cpu", torch.bfloat16, True, 0),
    ):  # fmt: skip
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiles=compiles: compiles)
        calls.clear()
        Linear(4, 2, device=device, dtype=dtype)(torch.zeros(3, 4, device=device, dtype=dtype))
        assert len(calls) == wanted, (device, dtype, compiles)


@pytest.mark.parametrize(
    ("missing", "supported"),
    [((), True), ((), False), (("_linear_pointwise",), True), (("_is_mkldnn_bf16_supported",), True)],
)
def test_onednns_layer_is_taken_where_it_is_there_and_supported(monkeypatch, missing, supported):
    operators = {"_linear_pointwise": "the layer", "_is_mkldnn_bf16_supported": lambda: supported}
    there = {name: operator for name, operator in operators.items() if name not in missing}
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace(**there))
    assert onednn_linear() == ("the layer" if supported and not missing else None)


@pytest.mark.skipif(onednn_linear() is None, reason="this processor has no bfloat16")
def test_a_frozen_layer_passes_the_gradient_on():
    layer = Linear(8, 4).bfloat16().requires_grad_(False)
    x = torch.randn(3, 5, 8).bfloat16().requires_grad_()
    layer(x).sum().backward()
    expected = layer.weight.float().sum(0).expand(3, 5, 8)
    torch.testing.assert_close(x.grad.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("old", "new"), [(8, 16), (16, 8), (8, 4), (7, 5), (4, 4), (1, 3)])
def test_positions_are_resized_as_by_timm(old, new):
    layers = pytest.importorskip("timm.layers")
    positions_ND = torch.randn(old**2, 12, generator=torch.Generator().manual_seed(0))
    expected = layers.resample_abs_pos_embed(positions_ND[None], [new, new], num_prefix_tokens=0)[0]
    assert resize_positions(positions_ND, new).equal(expected)
    with_class = layers.resample_abs_pos_embed(torch.cat([positions_ND[:1], positions_ND])[None], [new, new])[0]
    assert with_class[1:].equal(expected)


def test_positions_of_the_same_grid_stay_as_they_are():
    positions_ND = torch.randn(64, 12)
    assert resize_positions(positions_ND, 8) is positions_ND
    even_ND = torch.full((64, 12), 0.3)
    torch.testing.assert_close(resize_positions(even_ND, 16), torch.full((256, 12), 0.3))
