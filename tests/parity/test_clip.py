"""CLIP and what is published of it, beside transformers' CLIPModel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import sfumato
from sfumato.caption_retrieval import Retriever
from sfumato.errors import CheckpointError, InvalidConfig
from sfumato.modelfiles.publish_model import publish_clip
from sfumato.models.clip import TRANSFORMERS, Clip, ClipConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.clip_vision import ClipVisionConfig
from support.made_data import noise
from support.tiny import randomise

TOKENIZER = Path(sfumato.__file__).parent / "assets" / "pocket" / "tokenizer"
CAPTIONS = ("a red apple", "cat", "", "word " * 40)
CONFIG = ClipConfig(
    text=ClipTextConfig(vocab_size=4000, positions=20, width=24, hidden=48, layers=2, heads=4),
    vision=ClipVisionConfig(
        image_size=32, patch_size=8, width=32, hidden=64, layers=3, heads=2, projection_dim=16, activation="gelu"
    ),
    eos_id=3999,
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of ours as `publish_clip` writes it."""
    folder = tmp_path_factory.mktemp("clip") / "retriever"
    model = randomise(Clip(CONFIG), 0)
    publish_clip(model, TOKENIZER, folder)
    return folder


@torch.no_grad()
def test_features_and_logits_are_those_of_transformers(published: Path) -> None:
    theirs = transformers.CLIPModel.from_pretrained(published).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(published)
    processor = transformers.CLIPImageProcessor.from_pretrained(published)
    ours = Retriever.from_folder(published)
    pictures = [noise(40, 32, 1), noise(32, 50, 2), Image.new("RGB", (9, 9), "orange")]
    inputs = tokenizer(list(CAPTIONS), padding="max_length", truncation=True, max_length=20, return_tensors="pt")
    pixels = processor(pictures, return_tensors="pt").pixel_values
    out = theirs(input_ids=inputs.input_ids, pixel_values=pixels)
    torch.testing.assert_close(ours.captions(CAPTIONS), out.text_embeds, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(ours.pictures(pictures), out.image_embeds, atol=2e-6, rtol=1e-5)
    logits = ours.model.logit_scale.exp() * ours.pictures(pictures) @ ours.captions(CAPTIONS).T
    torch.testing.assert_close(logits, out.logits_per_image, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    text = {"vocab_size": 4000, "max_position_embeddings": 16, "hidden_size": 16, "intermediate_size": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"image_size": 24, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    ends = {"bos_token_id": 3998, "eos_token_id": 3999, "pad_token_id": 3999}
    config = transformers.CLIPConfig(
        text_config={**text, **layers, **ends}, vision_config={**vision, **layers}, projection_dim=12
    )
    theirs = randomise(transformers.CLIPModel(config), 3)
    theirs.save_pretrained(tmp_path)
    transformers.CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path)
    ours = Retriever.from_folder(tmp_path)
    assert ClipConfig.from_published(ours.model.config.to_published()) == ours.model.config
    ids = torch.tensor([[3998, 5, 6, 3999, 3999, 3999], [3998, 9, 3999, 3999, 3999, 3999]])
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    out = theirs(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(ours.model.embed_captions(ids), out.text_embeds, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(ours.model.embed_pictures(pixels), out.image_embeds, atol=2e-6, rtol=1e-5)


def test_old_configs_take_the_highest_token_for_the_end() -> None:
    values = CONFIG.to_published()
    values["text_config"]["eos_token_id"] = 2
    assert ClipConfig.from_published(values).eos_id == 3999


def test_what_is_no_clip_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="model_type"):
        ClipConfig.from_published({**CONFIG.to_published(), "model_type": "siglip"})
    with pytest.raises(InvalidConfig, match="eos_id"):
        ClipConfig(eos_id=49408)
    assert set(TRANSFORMERS.names("text_projection.weight")) == {"text_projection.weight"}
    for file in published.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        Retriever.from_folder(tmp_path)
