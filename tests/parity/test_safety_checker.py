"""The v1 safety checker against diffusers', its preprocessing against transformers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sfumato.errors import CheckpointError, NumericalError
from sfumato.models.clip_vision import SAFETY_CHECKER, ClipVision, ClipVisionConfig
from sfumato.safety.checker import Concepts, SafetyChecker, preprocess, verdict
from sfumato.weights.checkpoint import open_checkpoint
from support.in_memory import load

D = 16


def picture(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (7, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(224, 224), (512, 512), (512, 704), (1000, 333), (64, 128), (8, 64), (225, 447)])
def test_preprocessing_equals_transformers(size: tuple[int, int], mode: str) -> None:
    image = picture(*size, seed=0, mode=mode)
    reference = CLIPImageProcessorPil()(image, return_tensors="np").pixel_values[0]
    ours = preprocess(image)
    assert ours.dtype == torch.float32
    np.testing.assert_array_equal(ours.numpy(), reference)


def tiny_reference() -> StableDiffusionSafetyChecker:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 30,
        "patch_size": 6,
        "hidden_act": "quick_gelu",
    }
    config = transformers.CLIPConfig(vision_config=vision, projection_dim=D)
    reference = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
        reference.concept_embeds_weights.fill_(0.35)
        reference.special_care_embeds_weights.fill_(0.3)
    return reference


def concepts_of(reference: StableDiffusionSafetyChecker) -> Concepts:
    names = (
        "concept_embeds",
        "concept_embeds_weights",
        "special_care_embeds",
        "special_care_embeds_weights",
    )
    return Concepts(**{name: getattr(reference, name).detach().clone() for name in names})


def test_whole_checker_flags_what_diffusers_flags() -> None:
    reference = tiny_reference()
    config = ClipVisionConfig.from_published(reference.config.to_dict())
    tower = load(ClipVision, config, SAFETY_CHECKER, reference.state_dict())
    images = [picture(40 + 3 * seed, 50, seed) for seed in range(12)]
    pixels = torch.stack([preprocess(image, 30) for image in images])
    # Thresholds between the pictures' own cosines, so that each concept splits them.
    with torch.no_grad():
        embeds = reference.visual_projection(reference.vision_model(pixels)[1])
        cosines = nn.functional.normalize(embeds) @ nn.functional.normalize(reference.concept_embeds).T
        reference.concept_embeds_weights.copy_(cosines.sort(dim=0).values[-2:].mean(dim=0))
    checker = SafetyChecker(concepts_of(reference), tower, image_size=30)
    _, flags = reference(pixels, [np.zeros((4, 4, 3))] * len(images))
    verdicts = checker(images)
    assert [v.status == "flagged" for v in verdicts] == flags
    assert 0 < sum(flags) < len(flags)
    assert {v.checker for v in verdicts} == {"stable-diffusion-v1"}
    assert len(verdicts[0].scores) == 20
    assert all(v.scores[name] > 0 and name.startswith("concept_") for v in verdicts for name in v.flagged_by)
    assert checker(images[3:4]) == verdicts[3:4]


class Pooled(nn.Module):
    """In place of the image tower: takes embeddings for pixels."""

    def forward(self, embeddings: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, embeddings


def test_verdicts_at_the_edge_are_diffusers() -> None:
    """One concept and the specials at thresholds a few ten-thousandths from the cosine, all others out of reach."""
    reference = tiny_reference()
    reference.vision_model, reference.visual_projection = Pooled(), nn.Identity()
    generator = torch.Generator().manual_seed(0)
    offsets = torch.arange(-24, 6) * 0.0005
    outcomes = []
    for trial in range(400):
        embeddings = torch.randn(1, D, generator=generator)
        unit = nn.functional.normalize(embeddings)[0]
        picks = offsets[torch.randint(len(offsets), (4,), generator=generator)]
        with torch.no_grad():
            reference.concept_embeds_weights.fill_(2.0)
            watched = trial % 17
            cosine = nn.functional.normalize(reference.concept_embeds)[watched] @ unit
            reference.concept_embeds_weights[watched] = cosine - picks[0]
            specials = nn.functional.normalize(reference.special_care_embeds) @ unit
            reference.special_care_embeds_weights.copy_(specials - picks[1:])
        _, (flag,) = reference(embeddings, [np.zeros((4, 4, 3))])
        ours = verdict(embeddings[0], concepts_of(reference))
        assert (ours.status == "flagged") == flag
        assert ours.flagged_by == ((f"concept_{watched}",) if flag else ())
        special_hit = any(ours.scores[f"special_{i}"] > 0 for i in range(3))
        outcomes.append((flag, special_hit, bool(picks[0] > 0.0005)))
    # A hit, no hit, a hit only thanks to a special one, and a special hit that flags nothing: all were seen.
    assert {(True, False, True), (False, False, False), (True, True, False), (False, True, False)} <= set(outcomes)


def test_later_specials_gain_from_the_first_and_none_flags() -> None:
    """By hand: cosines 0.5; the first special passes by 0.002, the next two miss by 0.004 and are lifted by 0.01."""
    basis = torch.eye(4)
    embedding = torch.tensor([1.0, 1.0, 1.0, 1.0])
    concepts = Concepts(
        concept_embeds=basis[:2],
        concept_embeds_weights=torch.tensor([0.505, 0.515]),
        special_care_embeds=basis[:3],
        special_care_embeds_weights=torch.tensor([0.498, 0.504, 0.504]),
    )
    ours = verdict(embedding, concepts)
    expected = {"special_0": 0.002, "special_1": 0.006, "special_2": 0.006, "concept_0": 0.005, "concept_1": -0.005}
    assert ours.scores == pytest.approx(expected, abs=1e-6)
    assert ours.flagged_by == ("concept_0",)


def test_concepts_come_from_the_published_file(tmp_path: Path) -> None:
    reference = tiny_reference()
    save_file(
        {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}, tmp_path / "m.safetensors"
    )
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        concepts = Concepts.from_checkpoint(checkpoint)
    assert torch.equal(concepts.concept_embeds, reference.concept_embeds)
    assert torch.equal(concepts.special_care_embeds_weights, reference.special_care_embeds_weights)


def test_misfitting_concepts_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"special_care_embeds.*\(3, 8\)"):
        Concepts(
            concept_embeds=torch.ones(17, 16),
            concept_embeds_weights=torch.ones(17),
            special_care_embeds=torch.ones(3, 8),
            special_care_embeds_weights=torch.ones(3),
        )


def test_nan_never_passes_for_safe() -> None:
    checker = SafetyChecker(concepts_of(tiny_reference()), lambda pixels: torch.full((1, D), float("nan")))
    with pytest.raises(NumericalError, match="not numbers"):
        checker([picture(64, 64, 0)])
