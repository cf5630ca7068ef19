"""M6: embeddings -> a stack of slots -> heads. It knows nothing of tiers, ranks or tasks.

Legend: B rows, T positions, D width, N images, P tokens an image, V text tokens, Q codebook, K codes a cell,
M chosen positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openm6.modalities.efficientnet import PhotoBackbone
from openm6.modalities.resnet import ResNet, ResNetConfig
from openm6.modalities.vig import Vig, VigConfig
from openm6.model.config import ModelConfig
from openm6.model.drawing import Drawing
from openm6.model.experts import Experts
from openm6.model.layers import Block, KeyValueCache, RMSNorm, rotary
from openm6.model.ranking import Ranking
from openm6.model.rows import pad_rows, product_dtype
from openm6.model.stream import Stream, attention_bias
from openm6.model.typed import named_modules

MAX_MATCH_SCALE = 4.6  # log 100


class ImageEntrance(nn.Module):
    """Image -> P stream features: a backbone's last map, projected, with a learned position for each cell."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        assert config.image is not None
        self.tokens = config.image_tokens
        self.backbone: nn.Module
        if isinstance(config.image, VigConfig):
            self.backbone = Vig(config.image)
        else:
            self.backbone = (
                ResNet(config.image) if isinstance(config.image, ResNetConfig) else PhotoBackbone()
            )
        self.project = nn.Linear(config.image.out_channels, config.width)
        self.position = nn.Parameter(torch.zeros(config.image_tokens, config.width))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, P, D)."""
        map_NCHW = self.backbone(images_NCHW)
        cells_NPC = map_NCHW.flatten(2).transpose(1, 2)
        assert cells_NPC.shape[1] == self.tokens, (
            "image_tokens must equal the cells of the backbone's last map"
        )
        return self.project(cells_NPC) + self.position


class M6(nn.Module):
    """One transformer for every task.

    `slots` holds the parameters of the distinct layers and `sharing[i]` names the slot that layer i runs:
    `[0] * layers` is a Pseudo Giant, `range(layers)` the Real Giant (see `openm6.giant.sharing.pseudo_to_real`).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.slots = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.sharing: list[int] = list(range(config.layers))
        self.norm = RMSNorm(config.width, eps=config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_text, bias=False)
        self.image = ImageEntrance(config) if config.image is not None else None
        self.drawing = Drawing(config) if config.cells else None
        self.match = nn.Linear(config.width, config.match_dim, bias=False) if config.match_dim else None
        # Log of 1 / temperature.
        self.match_scale = nn.Parameter(torch.tensor(2.7)) if config.match_dim else None
        self.ranking = Ranking(config) if config.ranking_layers else None
        self._initialise()

    def _initialise(self) -> None:
        for name, module in named_modules(self):
            if name.startswith("image.backbone"):
                continue  # the backbone initialises itself
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and "bias" in dict(module.named_parameters(recurse=False)):
                nn.init.zeros_(module.bias)
        depth_scale = (2 * self.config.layers) ** -0.5  # keeps the residual stream's variance (GPT-2)
        for slot in self.slots:
            assert isinstance(slot, Block)
            slot.attention.out.weight.data.mul_(depth_scale)
            down = slot.ffn.down if isinstance(slot.ffn, Experts) else slot.ffn.down.weight
            down.data.mul_(depth_scale)

    def forward(self, stream: Stream) -> Tensor:
        """Hidden states after the last norm, (B, T, D)."""
        who = (stream.example_BT, stream.branch_BT, stream.order_BT)
        return self.run_layers(self.embed_stream(stream), stream.positions_BT, attention_bias(who, who))

    def embed_stream(self, stream: Stream) -> Tensor:
        """Tokens, image features and drawing cells as one (B, T, D)."""
        x_BTD = self.embed(stream.tokens_BT)
        B, T, D = x_BTD.shape
        if stream.images_NCHW is not None:
            if self.image is None:
                raise ValueError("this model does not see: its config has no image backbone")
            features = self.image(stream.images_NCHW).reshape(-1, D)
            x_BTD = x_BTD.reshape(-1, D).index_copy(0, stream.image_at, features).view(B, T, D)
        if stream.next_cell_at is not None and len(stream.next_cell_at):
            if self.drawing is None:
                raise ValueError("this model does not draw: its config has no image codes")
            flat = x_BTD.reshape(-1, D)
            if stream.cell_at is not None and len(stream.cell_at):
                assert stream.cells_LK is not None
                flat = flat.index_copy(0, stream.cell_at, self.embed_cells(stream.cells_LK))
            position = self.drawing.position(stream.next_cell)
            x_BTD = flat.index_add(0, stream.next_cell_at, position).view(B, T, D)
        return x_BTD

    def embed_cells(self, cells_LK: Tensor) -> Tensor:
        """Cells of a drawing as stream features, (L, K) -> (L, D)."""
        assert self.drawing is not None
        return self.drawing.embed(cells_LK, self.embed.weight[self.config.vocab_text :]).sum(1)

    def run_layers(
        self, x_BTD: Tensor, positions_BT: Tensor, bias_B1TS: Tensor, *, cache: KeyValueCache | None = None
    ) -> Tensor:
        """The stack and the last norm, (B, T, D) -> (B, T, D); `bias` (B, 1, T, S) is added to the scores."""
        rope = rotary(positions_BT, head_dim=self.config.head_dim, theta=self.config.rope_theta)
        for layer, slot in enumerate(self.sharing):
            x_BTD = self.slots[slot](x_BTD, rope, bias_B1TS, cache=cache, layer=layer)
        return self.norm(x_BTD)

    def text_logits(self, hidden_MD: Tensor) -> Tensor:
        """Scores of the text tokens, (..., V): codes get none, since the layout knows that the target is text."""
        weight_VD = self.embed.weight[: self.config.vocab_text] if self.head is None else self.head.weight
        if hidden_MD.dim() > 2 or not torch.is_grad_enabled():  # decoding has few shapes, and few rows
            return F.linear(hidden_MD, weight_VD)
        return F.linear(pad_rows(hidden_MD, product_dtype(weight_VD)), weight_VD)[: len(hidden_MD)]

    def code_logits(self, hidden_MD: Tensor, cells_MK: Tensor) -> Tensor:
        """Scores of every code of the cells, each given those before it, (M, K, Q)."""
        assert self.drawing is not None
        return self.drawing.logits(hidden_MD, cells_MK, self.embed.weight[self.config.vocab_text :])

    def next_code_logits(self, hidden_MD: Tensor, begun_MK: Tensor) -> Tensor:
        """Scores of the next code of cells that are begun, (M, Q)."""
        assert self.drawing is not None
        return self.drawing.next_logits(hidden_MD, begun_MK, self.embed.weight[self.config.vocab_text :])

    def match_embedding(self, hidden_MD: Tensor) -> Tensor:
        """Unit vectors in the space where an image and its text meet, (M, match_dim)."""
        if self.match is None:
            raise ValueError("this model cannot match pictures with texts: its config has match_dim 0")
        return F.normalize(self.match(hidden_MD).float(), dim=-1)

    def inverse_temperature(self) -> Tensor:
        """The factor that turns cosines of match embeddings into logits: learned, and at most 100, as in CLIP."""
        assert self.match_scale is not None
        return self.match_scale.clamp(max=MAX_MATCH_SCALE).exp()

    def match_logits(self, unit_MD: Tensor, other_VD: Tensor) -> Tensor:
        """Logits of every pair of match embeddings, (M, V)."""
        with torch.autocast(unit_MD.device.type, enabled=False):  # in bf16 the steps of 100 are half a nat
            return self.inverse_temperature() * unit_MD @ other_VD.T
