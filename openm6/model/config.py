"""The shape of an M6: one small pydantic model, everything optional in the architecture is a field of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from openm6.modalities.resnet import ResNetConfig


class ModelConfig(BaseModel):
    """Sizes of the stack, its vocabulary and its image entrance.

    The stream's vocabulary is `vocab_text` text tokens (special ones included) followed by the image codes:
    the k-th code `c` of a cell is token `vocab_text + k * codebook + c`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_text: int
    codebook: int = 0  # codes of the image tokenizer; 0 = the model does not draw
    codes_per_cell: int = 4  # a square block of codes shares one position of the stream
    cells: int = 0  # positions of one drawing

    layers: int = 8
    width: int = 256
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    ffn: int = 768
    ffn_kind: Literal["swiglu", "gelu"] = "swiglu"  # gelu: two matrices, as M6-10T's experts
    qk_norm: bool = True
    qkv_bias: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True

    image: ResNetConfig | None = None  # None = the model does not see
    image_size: int = 64
    image_tokens: int = 16  # height x width of the backbone's last feature map
    match_dim: int = 0  # size of the match embedding; 0 = no match head

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        if bool(self.codebook) != bool(self.cells):
            raise ValueError("codebook and cells go together: set both to draw, neither not to")
        return self

    @property
    def vocab(self) -> int:
        """All tokens of the stream: text, then codes."""
        return self.vocab_text + self.codebook * self.codes_per_cell
