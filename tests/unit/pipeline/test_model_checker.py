"""A folder's safety checker is offered exactly where it can be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

import sfumato
from sfumato.modelfiles.open_model import open_model
from sfumato.models.clip_vision import SAFETY_CHECKER, ClipVision, ClipVisionConfig
from sfumato.pipeline.safety_checker import load_safety_checker
from sfumato.weights.mapper import written_entries

POCKET = Path(sfumato.__file__).parent / "assets" / "pocket"


def test_a_checker_that_is_there_in_half_precision_only_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(POCKET, folder)
    checker = folder / "safety_checker"
    checker.mkdir()
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    (checker / "config.json").write_text(json.dumps({"vision_config": vision, "projection_dim": 4}))
    module = ClipVision(ClipVisionConfig.from_published({"vision_config": vision, "projection_dim": 4}))
    state = module.state_dict()
    tensors = {entry.theirs: state[entry.ours].contiguous() for entry in written_entries(module, SAFETY_CHECKER)}
    tensors |= {"concept_embeds": torch.eye(4), "concept_embeds_weights": torch.ones(4)}
    tensors |= {"special_care_embeds": torch.eye(4)[:2].clone(), "special_care_embeds_weights": torch.ones(2)}
    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(half, checker / "model.fp16.safetensors")
    with open_model(folder) as files:
        assert files.safety_checker == checker
    loaded = load_safety_checker(checker, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(loaded.concepts.concept_embeds, torch.eye(4))
