"""Chooses tokens by sampling (greedy at temperature 0) or by beam search, on a `Decoder`.

All randomness comes from outside, as numbers in [0, 1) that belong to a row. So the samples of a row do not depend
on the rows beside it. The numbers are drawn on the host, so a seed gives the same numbers on every device.

Scores are computed, and tokens are chosen, on the model's device. The choices are moved to the host once per step.
Texts and beams are kept there, as lists.

Legend: B rows, W beams, V tokens that may be chosen, T choices, K codes a cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from openm6.decode.decoder import Decoder


@dataclass(frozen=True)
class Sampling:
    """The rule that draws a token from scores: temperature 0 = the best one, `top_k` 0 and `top_p` 1 = all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0  # classifier-free guidance (2207.12598); the second half of the rows has no words

    def __post_init__(self) -> None:
        finite = math.isfinite(self.temperature) and math.isfinite(self.guidance)
        if not finite or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "sampling needs temperature >= 0, top_k >= 0, 0 < top_p <= 1 and a finite guidance, not "
                f"{self.temperature}, {self.top_k}, {self.top_p} and {self.guidance}"
            )


def chances(seeds: Sequence[tuple[int, ...]], count: int) -> Tensor:
    """Numbers in [0, 1) that decide `count` choices of each row, (B, count), on the host.

    A row's numbers follow from its seed.

    Raises ValueError for a seed below 0.
    """
    if any(part < 0 for seed in seeds for part in seed):
        raise ValueError(f"a seed must be 0 or more, not {min(min(seed) for seed in seeds)}")
    rows = [np.random.default_rng(seed).random(count, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def choose(logits_BV: Tensor, sampling: Sampling, chance_B: Tensor) -> Tensor:
    """One index for each row, (B), where the scores are, by inverting the distribution at `chance_B`."""
    device = logits_BV.device
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    # The best score becomes 0, so that no temperature can overflow.
    logits_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    if device.type == "mps":  # Apple's GPUs have no double precision
        logits_BV = logits_BV.cpu()
    logits_BV = logits_BV.double() / sampling.temperature
    chance_B = chance_B.to(logits_BV.device)
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(sampling.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, float("-inf"))
    if sampling.top_p < 1:
        sorted_logits, order = logits_BV.sort(descending=True, stable=True)
        p = sorted_logits.softmax(-1)
        outside = p.cumsum(-1) - p >= sampling.top_p  # keeps the token that crosses the border
        logits_BV = logits_BV.masked_fill(outside.scatter(1, order, outside), float("-inf"))
    below_BV = logits_BV.softmax(-1).cumsum(-1)
    # Below the total in double precision, for a chance is at most 1 - 2**-24: never past the last token.
    chosen_B1 = torch.searchsorted(below_BV, chance_B.double()[:, None] * below_BV[:, -1:], right=True)
    return chosen_B1[:, 0].to(device)


@torch.no_grad()
def sample_text(
    decoder: Decoder,
    *,
    eos: int,
    sampling: Sampling,
    chance_BT: Tensor,
    begin: Sequence[Sequence[int]] | None = None,
    on_tokens: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
    """Text tokens of every row up to `eos`, which is left out, at most T.

    `begin`: the first tokens of each row. They are part of the output and do not count. `on_tokens` is called with
    a row and its tokens so far, whenever the row has a new token after its beginning.
    """
    rows, max_new = chance_BT.shape
    begin = begin or [()] * rows
    outputs: list[list[int]] = [[] for _ in range(rows)]
    done = [False] * rows
    for place in range(max(map(len, begin)) + max_new):
        fresh = torch.tensor([min(max(place - len(forced), 0), max_new - 1) for forced in begin])
        chance_B = chance_BT.gather(1, fresh[:, None])[:, 0]
        logits_BV = decoder.model.text_logits(decoder.hidden_BD).float()
        chosen = choose(logits_BV, sampling, chance_B).tolist()
        for row, forced in enumerate(begin):
            if place < len(forced):
                chosen[row] = forced[place]
            done[row] = done[row] or chosen[row] == eos
            if not done[row]:
                outputs[row].append(chosen[row])
                done[row] = place + 1 == len(forced) + max_new
                if on_tokens is not None and place >= len(forced):
                    on_tokens(row, outputs[row])
        if all(done):
            break
        decoder.step(torch.tensor(chosen))
    return outputs


@torch.no_grad()
def sample_cells(
    decoder: Decoder,
    *,
    cells: int,
    sampling: Sampling,
    chance_BT: Tensor,
    on_cell: Callable[[int], None] | None = None,
) -> Tensor:
    """The drawing of every row, (B, cells, K), for T = cells x K choices.

    With `guidance` other than 1 the decoder holds every prompt twice: B rows with words, then B rows without.
    `on_cell` is called with the number of cells drawn so far.
    """
    guided, depth = sampling.guidance != 1, decoder.model.config.codes_per_cell
    device = decoder.hidden_BD.device
    rows = len(chance_BT)
    assert chance_BT.shape[1] == cells * depth and len(decoder.hidden_BD) == rows * (2 if guided else 1)
    drawn: list[Tensor] = []
    for place in range(cells):
        cell_BK = torch.empty((len(decoder.hidden_BD), 0), dtype=torch.int64, device=device)
        for k in range(depth):
            logits = decoder.model.next_code_logits(decoder.hidden_BD, cell_BK).float()
            if guided:
                worded, wordless = logits.chunk(2)
                logits = wordless + sampling.guidance * (worded - wordless)
            chosen = choose(logits, sampling, chance_BT[:, place * depth + k])
            cell_BK = torch.cat((cell_BK, (chosen.repeat(2) if guided else chosen)[:, None]), dim=1)
        drawn.append(cell_BK[:rows])
        if on_cell is not None:
            on_cell(place + 1)
        if place + 1 < cells:
            decoder.step_cell(cell_BK)
    return torch.stack(drawn, dim=1)


@dataclass(order=True)
class _Finished:
    score: float
    tokens: list[int] = field(compare=False)


@torch.no_grad()
def beam_search(
    decoder: Decoder,
    *,
    beams: int,
    eos: int,
    max_new: int,
    allowed: Callable[[int, Sequence[int]], Tensor | None] = lambda row, tokens: None,
) -> list[list[int]]:
    """The most probable text of every row among `beams` kept texts; one beam is greedy search.

    `allowed` returns which tokens may follow those of a row, (V) bool on the host, or None for all. It must allow
    at least one.

    A row ends when none of its open beams can still beat its best finished one. A text that is still open after
    `max_new` tokens is returned only if none has ended.
    """
    rows = len(decoder.hidden_BD)
    decoder.select(torch.arange(rows).repeat_interleave(beams))
    scores_RW = torch.full((rows, beams), float("-inf"))
    scores_RW[:, 0] = 0  # all beams are equal at first, so only one may continue
    tokens: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(rows)]
    best: list[_Finished | None] = [None] * rows
    for place in range(1, max_new + 1):
        log_p = decoder.model.text_logits(decoder.hidden_BD).float().log_softmax(-1)
        vocab = log_p.shape[-1]
        masks = [allowed(row, tokens[row][beam]) for row in range(rows) for beam in range(beams)]
        if any(mask is not None for mask in masks):
            all_tokens = torch.ones(vocab, dtype=torch.bool)
            may = torch.stack([all_tokens if mask is None else mask for mask in masks])
            log_p.masked_fill_(~may.to(log_p.device), float("-inf"))
        totals = scores_RW[:, :, None].to(log_p.device) + log_p.view(rows, beams, vocab)
        # Twice as many as needed, for at most `beams` of them can be ends.
        values, flat = (each.cpu() for each in totals.view(rows, -1).topk(2 * beams))
        parents, nexts = flat // vocab, flat % vocab
        keep_parent = torch.zeros(rows, beams, dtype=torch.int64)
        keep_token = torch.full((rows, beams), eos)
        new_tokens: list[list[list[int]]] = []
        new_scores = torch.full((rows, beams), float("-inf"))
        for row in range(rows):
            open_beams: list[list[int]] = []
            for rank, (value, parent, token) in enumerate(
                zip(values[row].tolist(), parents[row].tolist(), nexts[row].tolist(), strict=True)
            ):
                if value == float("-inf"):
                    break
                history = tokens[row][parent]
                if token == eos:
                    if rank < beams:  # an end counts only where it would have been a beam
                        done = _Finished(value, history)
                        best[row] = max(filter(None, (best[row], done)))
                elif len(open_beams) < beams:
                    beam = len(open_beams)
                    keep_parent[row, beam], keep_token[row, beam] = parent, token
                    new_scores[row, beam] = value
                    open_beams.append([*history, token])
            new_tokens.append(open_beams + [[] for _ in range(beams - len(open_beams))])
        tokens, scores_RW = new_tokens, new_scores
        if all(
            end is not None and top <= end.score
            for end, top in zip(best, scores_RW[:, 0].tolist(), strict=True)
        ):
            break
        if place < max_new:
            decoder.select((torch.arange(rows)[:, None] * beams + keep_parent).flatten())
            decoder.step(keep_token.flatten())
    return [end.tokens if end is not None else tokens[row][0] for row, end in enumerate(best)]
