"""The shape of an M6, as one small pydantic model. Every option of the architecture is a field."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from openm6.modalities.efficientnet import PretrainedConfig
from openm6.modalities.resnet import ResNetConfig
from openm6.modalities.vig import VigConfig


def _backbone(image: Any) -> str:
    """The backbone that a config describes. Validation errors then name fields of that one only."""
    fields = cast("dict[str, Any]", image) if isinstance(image, dict) else {}
    if isinstance(image, VigConfig) or fields.get("kind") == "vig":
        return VigConfig.__name__
    pretrained = "pretrained" in image if isinstance(image, dict) else isinstance(image, PretrainedConfig)
    return (PretrainedConfig if pretrained else ResNetConfig).__name__


Backbone = Annotated[
    Annotated[ResNetConfig, Tag(ResNetConfig.__name__)]
    | Annotated[VigConfig, Tag(VigConfig.__name__)]
    | Annotated[PretrainedConfig, Tag(PretrainedConfig.__name__)],
    Discriminator(_backbone),
]


class ExpertsConfig(BaseModel):
    """A mixture of experts in every layer (see `openm6.model.experts`); each expert has the model's `ffn`.

    Without `capacity` no token is ever dropped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: int = Field(gt=0)  # of a layer
    prototypes: int = Field(default=1, gt=0)  # groups of experts, each with its own top-1 router
    top_k: int = Field(default=1, gt=0)  # plain top-k instead: one router over all, the k likeliest experts
    capacity: float | None = Field(default=None, gt=0)  # an expert's places over its even share
    balance_loss: float = Field(default=0.0, ge=0)  # weight of Switch's load-balance loss

    @model_validator(mode="after")
    def _consistent(self) -> ExpertsConfig:
        if self.experts % self.prototypes:
            raise ValueError(f"experts ({self.experts}) must be a multiple of prototypes ({self.prototypes})")
        if self.top_k > 1 and self.prototypes > 1:
            raise ValueError("top_k and prototypes exclude each other: a prototype routes top-1")
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) must not exceed experts ({self.experts})")
        return self

    @property
    def active(self) -> int:
        """Experts that a token goes to."""
        return self.prototypes * self.top_k


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
    experts: ExpertsConfig | None = None  # None = one FFN a layer
    qk_norm: bool = True
    qkv_bias: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True

    image: Backbone | None = None  # None = the model does not see
    image_size: int = 64
    image_tokens: int = 16  # height x width of the backbone's last feature map
    match_dim: int = 0  # size of the match embedding; 0 = no match head
    ranking_layers: int = 0  # of each of the two cross encoders; 0 = there are none

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        if bool(self.codebook) != bool(self.cells):
            raise ValueError("codebook and cells go together: set both to draw, neither not to")
        if isinstance(self.image, VigConfig):
            cells = self.image.sides[-1] ** 2
            if (self.image.image_size, cells) != (self.image_size, self.image_tokens):
                raise ValueError(
                    f"image: this ViG reads {self.image.image_size} pixels and returns {cells} cells; set "
                    f"image_size (now {self.image_size}) and image_tokens (now {self.image_tokens}) to these"
                )
        if self.ranking_layers and not (self.match_dim and self.image):
            raise ValueError("ranking_layers refine what match finds: set match_dim and image too")
        return self

    @property
    def vocab(self) -> int:
        """All tokens of the stream: text, then codes."""
        return self.vocab_text + self.codebook * self.codes_per_cell
