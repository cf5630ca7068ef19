"""The layer against its textbook formulas, forward and backward, in double precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openm6.model.config import ModelConfig
from openm6.model.layers import Attention, Block, FeedForward, RMSNorm, attend, rotary, rotate


def config(**changes: object) -> ModelConfig:
    sizes: dict[str, object] = {"width": 24, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffn": 20, "layers": 2}
    return ModelConfig.model_validate({"vocab_text": 32, **sizes, **changes})


def causal_bias(B: int, T: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((T, T), float("-inf"), dtype=dtype).triu(1).expand(B, 1, T, T)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def plain_rotate(x_BHTC: Tensor, positions_BT: Tensor, theta: float) -> Tensor:
    """Pair (c, c + C / 2) as one complex number, turned by position * theta^(-2c/C)."""
    C = x_BHTC.shape[-1]
    angle = positions_BT[:, None, :, None] * theta ** (-torch.arange(0, C, 2, dtype=x_BHTC.dtype) / C)
    pairs = torch.complex(x_BHTC[..., : C // 2], x_BHTC[..., C // 2 :]) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def plain_attend(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, bias_B1TS: Tensor) -> Tensor:
    groups = q_BHTC.shape[1] // k_BKSC.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k_BKSC, v_BKSC))
    return (q_BHTC @ k.transpose(-1, -2) / q_BHTC.shape[-1] ** 0.5 + bias_B1TS).softmax(-1) @ v


def plain_block(
    block: Block, x_BTD: Tensor, positions_BT: Tensor, bias: Tensor, theta: float, eps: float
) -> Tensor:
    attention, ffn = block.attention, block.ffn
    assert isinstance(ffn, FeedForward)
    heads, kv, C = attention.heads, attention.kv_heads, attention.head_dim

    def norm(module: torch.nn.Module, x: Tensor) -> Tensor:
        return plain_rms_norm(x, module.weight, eps) if isinstance(module, RMSNorm) else x

    qkv = norm(block.attention_norm, x_BTD) @ attention.qkv.weight.T
    if attention.qkv.bias is not None:
        qkv = qkv + attention.qkv.bias
    q, k, v = (
        t.unflatten(-1, (-1, C)).transpose(1, 2) for t in qkv.split((heads * C, kv * C, kv * C), dim=-1)
    )
    q = plain_rotate(norm(attention.q_norm, q), positions_BT, theta)
    k = plain_rotate(norm(attention.k_norm, k), positions_BT, theta)
    x_BTD = x_BTD + plain_attend(q, k, v, bias).transpose(1, 2).flatten(2) @ attention.out.weight.T
    h = norm(block.ffn_norm, x_BTD) @ ffn.up.weight.T
    if ffn.gated:
        gate, up = h.chunk(2, dim=-1)
        h = gate * torch.sigmoid(gate) * up
    else:
        h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    return x_BTD + h @ ffn.down.weight.T


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    size=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_rms_norm_equals_its_formula_forward_and_backward(
    shape: list[int], size: int, scale: float, seed: int
):
    torch.manual_seed(seed)
    norm = RMSNorm(size, eps=1e-6).double()
    torch.nn.init.normal_(norm.weight)
    x = (scale * torch.randn(*shape, size, dtype=torch.float64)).requires_grad_()
    y, expected = norm(x), plain_rms_norm(x, norm.weight, 1e-6)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    dy = torch.randn_like(y)
    actual_grads = torch.autograd.grad(y, (x, norm.weight), dy)
    expected_grads = torch.autograd.grad(expected, (x, norm.weight), dy)
    torch.testing.assert_close(actual_grads, expected_grads, rtol=1e-7, atol=1e-7)


def test_rms_norm_passes_gradcheck_on_a_strided_input():
    norm = RMSNorm(6, eps=1e-5).double()
    x = torch.randn(3, 4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: norm(x.unflatten(-1, (2, 6))[:, :, :1]), (x,))
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(norm, {"weight": w}, (x[..., :6],)), (norm.weight,)
    )


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_of_bf16_computes_in_fp32_and_returns_bf16(weight_dtype: torch.dtype):
    torch.manual_seed(0)
    norm = RMSNorm(64, eps=1e-6).to(weight_dtype)
    x = torch.randn(50, 64).bfloat16().requires_grad_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    precise = x.detach().double().requires_grad_()
    expected = plain_rms_norm(precise, norm.weight.double(), 1e-6)
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=0)  # one rounding to bf16
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy.double())
    assert x.grad is not None and precise.grad is not None and x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.double(), precise.grad, rtol=2**-6, atol=2**-7)


def test_rotate_equals_complex_multiplication_and_its_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    positions = torch.randint(0, 50, (2, 5))
    turned = rotate(x, *rotary(positions, head_dim=8, theta=100.0))
    expected = plain_rotate(x.transpose(1, 2), positions, 100.0).transpose(1, 2)
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-5)  # the tables are fp32
    same = x[:1, :1].expand(1, 5, 3, 8)
    near, far = (
        rotate(same, *rotary(at, head_dim=8, theta=100.0))
        for at in (torch.arange(5)[None], torch.arange(9, 14)[None])
    )
    scores_near, scores_far = (torch.einsum("bthc,bshc->bhts", t, t) for t in (near, far))
    torch.testing.assert_close(scores_near, scores_far, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_attend_equals_softmax_attention(heads: int, kv_heads: int, dtype: torch.dtype, tolerance: float):
    """fp32 runs the fused operation, bf16 with gradients the plain one; both equal the formula."""
    torch.manual_seed(0)
    B, T, C = 2, 7, 8
    shapes = [(B, heads, T, C), (B, kv_heads, T, C), (B, kv_heads, T, C)]
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    precise = [t.detach().double().requires_grad_() for t in inputs]
    y = attend(inputs[0], inputs[1], inputs[2], causal_bias(B, T, torch.float32))
    expected = plain_attend(precise[0], precise[1], precise[2], causal_bias(B, T))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, inputs, dy)
    for grad, right in zip(grads, torch.autograd.grad(expected, precise, dy.double()), strict=True):
        torch.testing.assert_close(grad.double(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": False}, {"qkv_bias": True}, {"ffn_kind": "gelu"}, {"kv_heads": 4}], ids=str
)
def test_block_equals_the_textbook_forward_and_backward(changes: dict[str, object]):
    torch.manual_seed(0)
    shape = config(**changes)
    block = Block(shape).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.4)
    B, T = 2, 6
    x = torch.randn(B, T, shape.width, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(T).expand(B, T)
    cos, sin = rotary(positions, head_dim=shape.head_dim, theta=shape.rope_theta)
    y = block(x, (cos.double(), sin.double()), causal_bias(B, T))
    expected = plain_block(block, x, positions, causal_bias(B, T), shape.rope_theta, shape.norm_eps)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    wanted = [x, *block.parameters()]
    dy = torch.randn_like(y)
    for grad, right in zip(
        torch.autograd.grad(y, wanted, dy), torch.autograd.grad(expected, wanted, dy), strict=True
    ):
        torch.testing.assert_close(grad, right, rtol=1e-4, atol=1e-4)


def test_block_under_bf16_autocast_stays_near_fp32_and_keeps_an_fp32_residual():
    torch.manual_seed(0)
    shape = config(width=64, heads=4, head_dim=16, ffn=96)
    block = Block(shape)
    x = torch.randn(2, 16, 64)
    rope = rotary(torch.arange(16).expand(2, 16), head_dim=16, theta=1e4)
    expected = block(x, rope, causal_bias(2, 16, torch.float32))
    expected.square().mean().backward()
    right = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
    block.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x, rope, causal_bias(2, 16, torch.float32))
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0, atol=0.05)
    y.square().mean().backward()
    assert right.keys() == dict(block.named_parameters()).keys()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None
        error = (parameter.grad - right[name]).norm() / right[name].norm()
        assert error < 0.03, f"{name}: relative error of the gradient {error:.3f}"


def test_parameter_names_are_the_checkpoint_format():
    """Renaming a parameter orphans every checkpoint, so the names are pinned."""
    assert {name: tuple(p.shape) for name, p in Block(config(qkv_bias=True)).named_parameters()} == {
        "attention_norm.weight": (24,),
        "attention.qkv.weight": (48, 24),
        "attention.qkv.bias": (48,),
        "attention.out.weight": (24, 24),
        "attention.q_norm.weight": (6,),
        "attention.k_norm.weight": (6,),
        "ffn_norm.weight": (24,),
        "ffn.up.weight": (40, 24),
        "ffn.down.weight": (24, 20),
    }


def test_no_qk_norm_and_the_gelu_ffn_have_fewer_parameters():
    names = {name for name, _ in Attention(config(qk_norm=False)).named_parameters()}
    assert names == {"qkv.weight", "out.weight"}
    assert FeedForward(config(ffn_kind="gelu")).up.weight.shape == (20, 24)
