"""One transformer layer, compatible with Qwen3 / Llama checkpoints.

Legend: B rows, T queries, S keys, D width, H heads, K key-value heads, G = H / K,
R = G x T, C head size, F FFN size.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from openm6.model.config import ModelConfig
from openm6.model.experts import Experts
from openm6.model.typed import row_norms


class KeyValueCache(Protocol):
    """The interface of a cache that attention uses (see `openm6.decode.cache`)."""

    def append(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new keys and values of one layer; return all that are stored so far."""
        ...


class _RMSNormCPU(torch.autograd.Function):
    """RMSNorm in few passes over memory (PyTorch 2.13 has no CPU kernel for it and composes it of seven).

    LayerNorm has a fused backward kernel. Given mean 0 and our 1 / rms as its 1 / deviation, it computes

        dx_layer_norm = (dy w - xh mean(dy w xh)) / rms - mean(dy w) / rms        with xh = x / rms,

    which is RMSNorm's gradient but for the last term (LayerNorm's mean also depends on x); we add that back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        inverse_rms = row_norms(x, precise).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        return torch.mul(x, inverse_rms).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        size = x.shape[-1]
        dy, rows = grad_outputs[0].reshape(-1, size), x.reshape(-1, size)
        inverse_rms = inverse_rms.view(-1, 1).to(weight.dtype)
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            dy, rows, [size], torch.zeros_like(inverse_rms), inverse_rms, weight, weight, [True, True, False]
        )
        dx.add_((dy @ weight.to(dy.dtype)).unsqueeze(-1) * (inverse_rms / size))
        return dx.view(x.shape), dweight, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (1910.07467)."""

    def __init__(self, size: int, *, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return cast(Any, _RMSNormCPU).apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary(positions_BT: Tensor, *, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and signed sin of every position, each (B, T, 1, C), for `rotate` (2104.09864, halves as Llama)."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=positions_BT.device).float() / head_dim)
    angle = positions_BT[:, :, None, None].float() * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BTHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (c, c + C / 2) by their angles, in fewer passes over memory than half by half."""
    swapped = x_BTHC.roll(x_BTHC.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BTHC * cos, swapped, sin).to(x_BTHC.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and (optionally) RMS-normed queries and keys."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        q_size, kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.sizes = (q_size, kv_size, kv_size)
        self.qkv = nn.Linear(config.width, sum(self.sizes), bias=config.qkv_bias)
        self.out = nn.Linear(q_size, config.width, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        bias_B1TS: Tensor,
        cache: KeyValueCache | None,
        layer: int,
    ) -> Tensor:
        parts = self.qkv(x_BTD).split(self.sizes, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        q_BHTC = rotate(self.q_norm(q), *rope).transpose(1, 2)
        k_BKSC = rotate(self.k_norm(k), *rope).transpose(1, 2)
        v_BKSC = v.transpose(1, 2)
        if cache is not None:
            k_BKSC, v_BKSC = cache.append(layer, k_BKSC, v_BKSC)
        y_BHTC = attend(q_BHTC, k_BKSC, v_BKSC, bias_B1TS)
        return self.out(y_BHTC.transpose(1, 2).flatten(2))


def attend(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, bias_B1TS: Tensor) -> Tensor:
    """softmax(q k / sqrt(C) + bias) v, (B, H, T, C); query head h reads key-value head h // G."""
    bias_B1TS = bias_B1TS.to(q_BHTC.dtype)
    if q_BHTC.device.type == "cpu" and q_BHTC.dtype == torch.bfloat16 and q_BHTC.requires_grad:
        # PyTorch's fused attention is slow backward in bf16 on a CPU: at 77 positions and head size 32 it
        # took 26.6 ms where these three plain operations took 5.0.
        return _attend_plain(q_BHTC, k_BKSC, v_BKSC, bias_B1TS)
    return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=bias_B1TS, enable_gqa=True)


def _attend_plain(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, bias_B1TS: Tensor) -> Tensor:
    B, H, T, C = q_BHTC.shape
    K = k_BKSC.shape[1]
    # The G queries of one key lie next to each other as G x T rows, so no key or value is copied G times.
    q_BKRC = (q_BHTC * C**-0.5).reshape(B, K, H // K * T, C)
    scores_BKRS = q_BKRC @ k_BKSC.transpose(-1, -2)
    weights_BHTS = (scores_BKRS.view(B, H, T, -1) + bias_B1TS).softmax(dim=-1)
    return (weights_BHTS.view(scores_BKRS.shape) @ v_BKSC).view(B, H, T, C)


class FeedForward(nn.Module):
    """SwiGLU (2002.05202), or the two-matrix GELU FFN."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gated = config.ffn_kind == "swiglu"
        self.up = nn.Linear(config.width, config.ffn * (2 if self.gated else 1), bias=False)
        self.down = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.gated:
            return self.down(F.gelu(self.up(x_BTD)))
        gate_BTF, up_BTF = self.up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)). The parameters of one Block are one slot."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = FeedForward(config) if config.experts is None else Experts(config)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        bias_B1TS: Tensor,
        *,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x_BTD = self.attend(x_BTD, rope, bias_B1TS, cache=cache, layer=layer)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))

    def attend(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        bias_B1TS: Tensor,
        *,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """The first half: x + attention(norm(x)). In a mixture layer the experts read its result."""
        return x_BTD + self.attention(self.attention_norm(x_BTD), rope, bias_B1TS, cache, layer)
