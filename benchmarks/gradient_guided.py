"""Gradient-guided decoding (ZeroCap, 2111.14447), for comparison with MAGIC on the same two models.

For every word, gradient descent learns a shift of the language model's key-value cache, until the likeliest words
are those whose texts fit the picture. Then the word is chosen, and the shift is forgotten:

    loss = CE(softmax of the image logits of the 512 likeliest words, p) + 0.2 KL(p || p before the shift)

As in the authors' code, there are five steps of gradient descent a word, five beams, and gradients normalised for
each tensor, and texts are encoded again in every step. Its factors for end tokens and its list of forbidden tokens
are left out, because they belong to GPT-2's vocabulary. Our prompt is a single token, so the shift also moves the
keys and values of this token. The authors' prompt is "Image of a", and they move all but the last token.

Legend: W beams, K key-value heads, S positions so far, C head size, V text tokens, N likeliest words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openm6.decode.decoder import Decoder
from openm6.decode.magic import ImageLogits
from openm6.model import M6
from openm6.tasks.layout import Branch


@dataclass(frozen=True)
class GradientGuidance:
    """The authors' settings."""

    beams: int = 5
    candidates: int = 512  # likeliest words whose texts are held against the picture
    iterations: int = 5
    step_size: float = 0.3
    norm_power: float = 0.9  # a gradient is divided by its norm to this power
    fluency: float = 0.2
    fusion: float = 0.99  # share of the shifted distribution, geometrically


class _ShiftedCache:
    """Keys and values of the context, each with its shift added; what attention appends is already in it."""

    def __init__(self, context: Sequence[tuple[Tensor, Tensor]], shift: Sequence[tuple[Tensor, Tensor]]):
        self.context, self.shift = context, shift

    def append(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        (keys, values), (keys_shift, values_shift) = self.context[layer], self.shift[layer]
        return keys + keys_shift, values + values_shift


def gradient_guided(
    model: M6,
    prompt: Branch,
    guidance: GradientGuidance,
    *,
    eos: int,
    max_new: int,
    image_logits: ImageLogits,
) -> list[int]:
    """The best text of one picture (row 0 of `image_logits`) without `eos`, at most `max_new` tokens."""
    decoder = Decoder(model, [prompt], None, max_new=max_new)
    last_W = torch.tensor(prompt.source[-1:])
    texts: list[list[int]] = [[]]
    score_W, length_W, ended_W = torch.zeros(1), torch.zeros(1), torch.tensor([False])
    for place in range(max_new):
        p_WV = shifted_distribution(decoder, last_W, texts, guidance, image_logits)
        log_p = p_WV.log()
        log_p[ended_W] = float("-inf")
        log_p[ended_W, eos] = 0.0
        total_WV, longer_W = score_W[:, None] + log_p, length_W + (~ended_W)
        mean_WV = total_WV / longer_W[:, None]
        best, flat = mean_WV.flatten().topk(guidance.beams)
        parent_W, last_W = flat // p_WV.shape[1], flat % p_WV.shape[1]
        texts = [
            texts[parent] + [word] for parent, word in zip(parent_W.tolist(), last_W.tolist(), strict=True)
        ]
        length_W, ended_W = longer_W[parent_W], ended_W[parent_W] | (last_W == eos)
        score_W = best * length_W
        if ended_W.all() or place + 1 == max_new:
            break
        with torch.no_grad():
            decoder.select(parent_W)
            decoder.step(last_W)
    text = texts[int((score_W / length_W).argmax())]
    return text[: text.index(eos)] if eos in text else text


def shifted_distribution(
    decoder: Decoder,
    last_W: Tensor,
    texts: Sequence[Sequence[int]],
    guidance: GradientGuidance,
    image_logits: ImageLogits,
) -> Tensor:
    """p of each beam's next word after the context was shifted towards the picture, (W, V)."""
    model, cache = decoder.model, decoder.cache
    length = cache.length[0]
    context = [
        (keys[:, :, :length], values[:, :, :length])
        for keys, values in zip(cache.keys, cache.values, strict=True)
        if keys is not None and values is not None
    ]
    shift = [(torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in context]
    x_W1D = model.embed(last_W)[:, None].detach()
    bias = torch.zeros(len(last_W), 1, 1, length)

    def log_p_of(shift: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        hidden = model.run_layers(
            x_W1D, decoder.position_B[:, None] - 1, bias, cache=_ShiftedCache(context, shift)
        )
        return model.text_logits(hidden[:, 0]).float().log_softmax(-1)

    with torch.no_grad():
        log_before_WV = model.text_logits(decoder.hidden_BD).float().log_softmax(-1)
    for _ in range(guidance.iterations):
        shift = [(keys.requires_grad_(), values.requires_grad_()) for keys, values in shift]
        log_p_WV = log_p_of(shift)
        loss = guidance_loss(log_p_WV, log_before_WV, texts, guidance, image_logits)
        flat = [tensor for pair in shift for tensor in pair]
        gradients = torch.autograd.grad(loss, flat)
        with torch.no_grad():
            moved = [
                tensor - guidance.step_size * gradient / (_norm(gradient) + 1e-15) ** guidance.norm_power
                for tensor, gradient in zip(flat, gradients, strict=True)
            ]
        shift = list(zip(moved[::2], moved[1::2], strict=True))
    with torch.no_grad():
        log_fused = guidance.fusion * log_p_of(shift) + (1 - guidance.fusion) * log_before_WV
        return log_fused.softmax(-1)


def guidance_loss(
    log_p_WV: Tensor,
    log_before_WV: Tensor,
    texts: Sequence[Sequence[int]],
    guidance: GradientGuidance,
    image_logits: ImageLogits,
) -> Tensor:
    """How far p is from the words that fit the picture, and from what the language model would have said."""
    likeliest_WN = log_p_WV.topk(min(guidance.candidates, log_p_WV.shape[1])).indices
    asked = [
        [[*text, word] for word in words] for text, words in zip(texts, likeliest_WN.tolist(), strict=True)
    ]
    with torch.no_grad():
        wanted_WN = image_logits([0] * len(asked), asked).float().softmax(-1)
    fit = -(wanted_WN * log_p_WV.gather(1, likeliest_WN)).sum()
    drift = (log_p_WV.exp() * (log_p_WV - log_before_WV)).sum()
    return fit + guidance.fluency * drift


def _norm(gradient_WKSC: Tensor) -> Tensor:
    """The norm of each beam's gradient, (W, 1, 1, 1)."""
    return gradient_WKSC.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
