"""CLIP in the layout of open_clip's state dicts, which is OpenAI's: queries, keys and values in one tensor, projections
that multiply from the right. It names no shape that tells the heads or the activation: those must be known."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import torch

from sfumato.errors import CheckpointError
from sfumato.models.clip import Clip, ClipConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.clip_vision import ClipVisionConfig
from sfumato.nn.empty import empty_modules
from sfumato.weights.checkpoint import open_checkpoint
from sfumato.weights.mapper import Layout, assign

VIT_H_14 = ClipConfig(
    text=ClipTextConfig(width=1024, hidden=4096, layers=24, heads=16, activation="gelu"),
    vision=ClipVisionConfig(width=1280, hidden=5120, layers=32, heads=16, projection_dim=1024, activation="gelu"),
)
"""open_clip's `ViT-H-14`, as its `model_configs` has it."""

_SPELLINGS = (
    (re.compile(r"\.self_attn\.[qkv]_proj\.(weight|bias)$"), r".attn.in_proj_\1"),
    (re.compile(r"\.self_attn\.out_proj\."), ".attn.out_proj."),
    (re.compile(r"\.layer_norm([12])\."), r".ln_\1."),
    (re.compile(r"\.mlp\.fc1\."), ".mlp.c_fc."),
    (re.compile(r"\.mlp\.fc2\."), ".mlp.c_proj."),
)
_THIRD = re.compile(r"\.([qkv])_proj\.(?:weight|bias)$")


def _spelled(name: str) -> str:
    for pattern, theirs in _SPELLINGS:
        name = pattern.sub(theirs, name)
    return name


OPEN_CLIP = Layout(
    modules={
        "text.embeddings.token_embedding": ("token_embedding",),
        "text.embeddings.position_embedding.weight": ("positional_embedding",),
        "text.encoder.layers": ("transformer.resblocks",),
        "text.final_layer_norm": ("ln_final",),
        "text_projection.weight": ("text_projection",),
        "vision.embeddings.class_embedding": ("visual.class_embedding",),
        "vision.embeddings.patch_embedding": ("visual.conv1",),
        "vision.embeddings.position_embedding.weight": ("visual.positional_embedding",),
        "vision.pre_layrnorm": ("visual.ln_pre",),
        "vision.encoder.layers": ("visual.transformer.resblocks",),
        "vision.post_layernorm": ("visual.ln_post",),
        "vision.visual_projection.weight": ("visual.proj",),
        "logit_scale": ("logit_scale",),
    },
    ignored=("attn_mask", "optimizer.*", "scaler.*"),  # of older versions, and of checkpoints to go on training from
    spelling=_spelled,
)


def load_open_clip(path: Path, config: ClipConfig) -> Clip:
    """A model of that shape in float32 from a file of open_clip, its state dict alone or under "state_dict".

    Nothing in the file is run. Raises `ModelNotFound` or `CheckpointError`, which names a tensor that is missing, left
    over or mis-shaped.
    """
    with empty_modules():
        model = Clip(config).eval().requires_grad_(False)
    with open_checkpoint(path) as checkpoint:
        left = set(checkpoint.tensors)
        for ours, own in model.state_dict().items():
            theirs = OPEN_CLIP.names(ours)[0]
            if theirs not in checkpoint.tensors:
                raise CheckpointError(f"{path} lacks {theirs}: is it a CLIP model of open_clip?")
            left.discard(theirs)
            third, shape = _THIRD.search(ours), tuple(own.shape)
            if third:
                shape = (3 * shape[0], *shape[1:])
            transposed = ours.endswith("projection.weight")
            stored = tuple(checkpoint.tensors[theirs].shape)
            if stored != (shape[::-1] if transposed else shape):
                raise CheckpointError(f"{path}: {theirs} is {stored}, of another shape than this model's")
            tensor = checkpoint.read(theirs)
            if third:
                tensor = tensor.chunk(3)["qkv".index(third[1])]
            assign(model, ours, (tensor.mT if transposed else tensor).to(torch.float32).contiguous())
    for name in sorted(left):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in OPEN_CLIP.ignored):
            raise CheckpointError(f"{path} has unknown {name}")
    return model
