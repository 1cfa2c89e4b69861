"""CLIP: both towers and the scale of their cosines (Radford et al. 2021). The published layout is transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sfumato.errors import InvalidConfig
from sfumato.models import clip_text, clip_vision
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.clip_vision import ClipVision, ClipVisionConfig
from sfumato.models.config_checks import require_fields, require_values
from sfumato.weights.mapper import Layout

FIRST_LOGIT_SCALE = 2.6592  # ln(1 / 0.07)
LARGEST_LOGIT_SCALE = 4.6052  # ln 100, where the paper clips it

_LEGACY_EOS = 2  # in old configs: the end is then the token of the highest id


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Shapes of the towers, and `eos_id`, the token at whose first place the text tower's state is taken. Wrong values
    raise `InvalidConfig`."""

    text: ClipTextConfig = field(default_factory=ClipTextConfig)
    vision: ClipVisionConfig = field(default_factory=ClipVisionConfig)
    eos_id: int = 49407

    def __post_init__(self) -> None:
        if not 0 <= self.eos_id < self.text.vocab_size:
            raise InvalidConfig(f"CLIP: eos_id {self.eos_id} is no token of a vocabulary of {self.text.vocab_size}")

    @classmethod
    def from_published(cls, values: Mapping[str, Any]) -> Self:
        """The config in transformers' `config.json` of a `CLIPModel`. Raises `InvalidConfig`."""
        require_values("CLIP", values, {"model_type": ("clip",)})
        require_fields("CLIP", values, ("text_config", "vision_config", "projection_dim"))
        text = ClipTextConfig.from_published(values["text_config"])
        eos = values["text_config"].get("eos_token_id", _LEGACY_EOS)
        return cls(
            text=text,
            vision=ClipVisionConfig.from_published(values),
            eos_id=text.vocab_size - 1 if eos == _LEGACY_EOS else eos,
        )

    def to_published(self) -> dict[str, Any]:
        """The published JSON of this config: the inverse of `from_published`."""
        vision = self.vision
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": vision.projection_dim,
            "logit_scale_init_value": FIRST_LOGIT_SCALE,
            "torch_dtype": "float32",
            "text_config": {
                **self.text.to_published(),
                "projection_dim": vision.projection_dim,
                "bos_token_id": self.eos_id - 1,
                "eos_token_id": self.eos_id,
                "pad_token_id": self.eos_id,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "hidden_size": vision.width,
                "intermediate_size": vision.hidden,
                "num_hidden_layers": vision.layers,
                "num_attention_heads": vision.heads,
                "projection_dim": vision.projection_dim,
                "hidden_act": vision.activation,
                "layer_norm_eps": vision.eps,
            },
        }


class Clip(nn.Module):
    """Pictures and captions in one space, where those that belong together are near."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.text = ClipText(config.text)
        self.vision = ClipVision(config.vision)
        self.text_projection = nn.Linear(config.text.width, config.vision.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_LOGIT_SCALE))

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, image_size, image_size) → embeddings of length 1 (B, projection_dim)."""
        return normalize(self.vision(pixels), dim=-1)

    def embed_captions(self, ids: Tensor) -> Tensor:
        """Token ids (B, T), each row with an end → embeddings of length 1 (B, projection_dim)."""
        states = self.text(ids)
        ends = (ids == self.config.eos_id).int().argmax(dim=1)
        pooled = states[torch.arange(len(ids), device=ids.device), ends]
        return normalize(self.text_projection(pooled), dim=-1)


def _below(prefix: str, part: Layout) -> dict[str, tuple[str, ...]]:
    return {prefix + ours: theirs for ours, theirs in part.modules.items()}


TRANSFORMERS = Layout(
    modules={
        **_below("text.", clip_text.layout("text_model.")),
        **_below("vision.", clip_vision.layout("vision_model.")),
        "text_projection": ("text_projection",),
        "logit_scale": ("logit_scale",),
    },
    ignored=("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"),
)
