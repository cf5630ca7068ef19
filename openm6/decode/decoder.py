"""The model behind a key-value cache: it reads the prefix once, and then one token at a time.

Legend: B rows, T source positions, S positions so far, D width, P tokens an image, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openm6.decode.cache import KeyValueCache
from openm6.model import M6, Stream
from openm6.model.stream import attention_bias
from openm6.tasks.collate import to_device
from openm6.tasks.layout import Branch

SCORES = 2**24  # attention scores of a head at a time: fewer rows where prompts are long


class Decoder:
    """One prompt per row; prompts may have different lengths. `hidden_BD` predicts each row's next token.

    `prompt_BTD` are the hidden states of the prompts. `seen_BS` marks the positions so far that are not padding.
    All of these are on the model's device. Tokens and rows may come from the host: the decoder moves them.
    """

    def __init__(
        self,
        model: M6,
        prompts: Sequence[Branch],
        images_NCHW: Tensor | None,
        *,
        max_new: int,
        candidates: int = 1,
        causal: bool = False,
    ):
        """`images_NCHW`: the normalised pictures of the prompts that have one, in their order. `candidates`: the
        most tokens in one call of `look_ahead`. `causal`: the prompts are read from left to right, as by a language
        model, and not in both directions, as by M6.
        """
        self.model = model
        self.device = model.embed.weight.device
        stream, length_B = prompt_stream(
            prompts, images_NCHW, image_tokens=model.config.image_tokens, causal=causal
        )
        stream, length_B = to_device(stream, self.device), length_B.to(self.device)
        rows = torch.arange(len(prompts), device=self.device)
        self.cache = KeyValueCache(model.config.layers, stream.tokens_BT.shape[1] + max_new + candidates - 1)
        self.seen_BS = stream.example_BT >= 0
        self.position_B = length_B.clone()
        self.cells = 0  # drawn so far
        if prompts[0].target_kind == "codes":
            stream.next_cell_at = rows * stream.tokens_BT.shape[1] + length_B - 1
            stream.next_cell = torch.zeros_like(rows)
        who = (stream.example_BT, stream.branch_BT, stream.order_BT)
        self.prompt_BTD = model.run_layers(
            model.embed_stream(stream), stream.positions_BT, attention_bias(who, who), cache=self.cache
        )
        self.hidden_BD = self.prompt_BTD[rows, length_B - 1]

    def step(self, tokens_B: Tensor) -> None:
        """Append one text token to every row."""
        self._step(self.model.embed(tokens_B.to(self.device)))

    def step_cell(self, cells_BK: Tensor) -> None:
        """Append one cell of the drawing to every row."""
        assert self.model.drawing is not None
        self.cells += 1
        x_BD = self.model.embed_cells(cells_BK.to(self.device))
        self._step(x_BD + self.model.drawing.position.weight[self.cells])

    def _step(self, x_BD: Tensor) -> None:
        self.seen_BS = torch.cat((self.seen_BS, torch.ones_like(self.seen_BS[:, :1])), dim=1)
        bias = _bias(self.seen_BS)[:, None, None]
        hidden_BTD = self.model.run_layers(x_BD[:, None], self.position_B[:, None], bias, cache=self.cache)
        self.position_B += 1
        self.hidden_BD = hidden_BTD[:, 0]

    def look_ahead(self, tokens_BK: Tensor) -> Tensor:
        """Hidden states behind each of K possible next tokens, (B, K, D). `take` keeps one of them.

        The K tokens run as K positions of one row. Each sees the earlier positions and itself, but not the others.
        So the cache is read once for all of them and never copied.
        """
        tokens_BK = tokens_BK.to(self.device)
        B, K = tokens_BK.shape
        seen_BKS = self.seen_BS[:, None].expand(B, K, -1)
        itself_BKK = torch.eye(K, dtype=torch.bool, device=self.device).expand(B, K, K)
        bias = _bias(torch.cat((seen_BKS, itself_BKK), dim=2))[:, None]
        return self.model.run_layers(
            self.model.embed(tokens_BK), self.position_B[:, None].expand(B, K), bias, cache=self.cache
        )

    def take(self, hidden_BKD: Tensor, chosen_B: Tensor) -> None:
        """Continue with one candidate in each row, from the states that the last `look_ahead` returned."""
        chosen_B = chosen_B.to(self.device)
        self.cache.keep(chosen_B, of=hidden_BKD.shape[1])
        self.seen_BS = torch.cat((self.seen_BS, torch.ones_like(self.seen_BS[:, :1])), dim=1)
        self.position_B += 1
        self.hidden_BD = hidden_BKD[torch.arange(len(chosen_B), device=self.device), chosen_B]

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in that order. Rows may be repeated."""
        rows = rows.to(self.device)
        self.cache.select(rows)
        self.seen_BS, self.position_B = self.seen_BS[rows], self.position_B[rows]
        self.hidden_BD, self.prompt_BTD = self.hidden_BD[rows], self.prompt_BTD[rows]


def _bias(visible: Tensor) -> Tensor:
    """0 where a position may be seen, -inf elsewhere."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))


def prompt_stream(
    prompts: Sequence[Branch], images_NCHW: Tensor | None, *, image_tokens: int, causal: bool = False
) -> tuple[Stream, Tensor]:
    """One prompt a row, padded on the right; returns the stream and each row's length (B), both on the host."""
    starts = [image_tokens if prompt.image is not None else 0 for prompt in prompts]
    lengths = [start + len(prompt.source) for start, prompt in zip(starts, prompts, strict=True)]
    shape = (len(prompts), max(lengths))
    tokens = torch.zeros(shape, dtype=torch.int64)
    example, branch, order = (torch.full(shape, -1) for _ in range(3))
    image_at: list[int] = []
    for row, (prompt, start, length) in enumerate(zip(prompts, starts, lengths, strict=True)):
        tokens[row, start:length] = torch.tensor(prompt.source)
        example[row, :length] = row
        branch[row, :start], order[row, :start] = 0, 0
        branch[row, start:length] = 1
        order[row, start:length] = torch.arange(1, length - start + 1) if causal else 1
        image_at.extend(range(row * shape[1], row * shape[1] + start))
    stream = Stream(
        tokens_BT=tokens,
        positions_BT=torch.arange(shape[1]).expand(shape),
        example_BT=example,
        branch_BT=branch,
        order_BT=order,
        images_NCHW=images_NCHW,
        image_at=torch.tensor(image_at, dtype=torch.int64),
    )
    return stream, torch.tensor(lengths)
