"""One model in every way it can lie on disk gives the same bytes, and a flagged picture is black as in diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file

from sfumato import load_pipeline
from sfumato.compat import diffusers as compat
from sfumato.modelfiles.open_model import METADATA_KEY, TOKENIZER_FILES
from sfumato.models import compvis
from sfumato.weights.mapper import written_entries
from support.tiny import randomise
from support.tiny_pipeline import reference_pipeline

PROMPT = "a red heart"


@pytest.fixture(scope="module")
def reference() -> diffusers.StableDiffusionPipeline:
    """Its half-precision numbers, so that a variant in float16 loses nothing."""
    pipeline = reference_pipeline(unet="v1-like", vae="v1-like")
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.half().float()
    return pipeline


@pytest.fixture(scope="module")
def folder(reference: diffusers.StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    reference.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    return picture(folder)


def picture(path: Path, **options: Any) -> str:
    pipeline = load_pipeline(path, device="cpu", safety="off", **options)
    return pipeline.generate(PROMPT, steps=3).provenance[0].pixels_sha256


def test_the_folder_is_diffusers_picture(folder: Path, reference: diffusers.StableDiffusionPipeline) -> None:
    theirs = reference(PROMPT, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[0]
    ours = load_pipeline(folder, device="cpu", safety="off", watermark=False).generate(PROMPT, steps=3).images[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_half_precision_variant(
    tmp_path: Path, reference: diffusers.StableDiffusionPipeline, expected: str, folder: Path
) -> None:
    shutil.copytree(folder, tmp_path / "both")
    for part in ("unet", "vae", "text_encoder"):
        for plain in list((tmp_path / "both" / part).glob("*.safetensors")):
            half = {name: tensor.half() for name, tensor in load_file(plain).items()}
            save_file(half, plain.with_suffix(".fp16.safetensors"), {"format": "pt"})
            plain.unlink()
    assert picture(tmp_path / "both", variant="fp16") == expected
    assert picture(tmp_path / "both") == expected  # nothing else is there
    pipe = compat.StableDiffusionPipeline.from_pretrained(tmp_path / "both", revision="fp16")
    assert pipe.dtype == torch.float32


def test_sharded(tmp_path: Path, reference: diffusers.StableDiffusionPipeline, expected: str) -> None:
    reference.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert picture(tmp_path) == expected


def test_files_of_torch_save(tmp_path: Path, reference: diffusers.StableDiffusionPipeline, expected: str) -> None:
    reference.save_pretrained(tmp_path)
    for part in ("unet", "vae", "text_encoder"):
        (plain,) = (tmp_path / part).glob("*.safetensors")
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(plain), plain.with_name(name))
        plain.unlink()
    assert picture(tmp_path) == expected


def test_old_names_of_the_autoencoders_attention(tmp_path: Path, folder: Path, expected: str) -> None:
    shutil.copytree(folder, tmp_path / "old")
    (path,) = (tmp_path / "old" / "vae").glob("*.safetensors")
    renamed = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(path)
    for new, old in renamed.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert sum(".proj_attn." in name for name in tensors) == 4
    save_file(tensors, path)
    assert picture(tmp_path / "old") == expected


def single_file(reference: diffusers.StableDiffusionPipeline, folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The original program's names, and the description that our writer puts beside them."""
    model = load_pipeline(folder, device="cpu", safety="off").model
    parts = (
        (model.unet, compvis.unet_layout(model.unet.config)),
        (model.autoencoder, compvis.autoencoder_layout(model.autoencoder.config)),
        (model.text_encoder, compvis.text_layout()),
    )
    tensors = {
        entry.theirs: module.state_dict()[entry.ours].reshape(entry.shape).contiguous()
        for module, layout in parts
        for entry in written_entries(module, layout)
    }
    described = {
        part: json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae", "text_encoder")
    }
    described["scheduler"] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    described["tokenizer"] = {
        path.name: path.read_text() for path in (folder / "tokenizer").iterdir() if path.name in TOKENIZER_FILES
    }
    return tensors, json.dumps(described)


def test_single_files(
    tmp_path: Path, reference: diffusers.StableDiffusionPipeline, folder: Path, expected: str
) -> None:
    """As safetensors; and the same through the compat class, under its scheduler."""
    tensors, description = single_file(reference, folder)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {METADATA_KEY: description})
    assert picture(path) == expected
    pipe = compat.StableDiffusionPipeline.from_single_file(path)
    theirs = reference(PROMPT, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[0]
    ours = pipe(PROMPT, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def v1_shaped() -> diffusers.StableDiffusionPipeline:
    """Few channels, but what a bare file can't say is as in v1: eight heads, 32 groups, v1's tokenizer and schedule."""
    vocabulary = 49408
    text = transformers.CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=[32, 64, 64, 64], cross_attention_dim=64, attention_head_dim=8, sample_size=64
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=[32, 32, 32, 32],
        layers_per_block=2,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    from sfumato.modelfiles.open_model import V1

    return diffusers.StableDiffusionPipeline(
        vae=randomise(vae, 0),
        text_encoder=randomise(transformers.CLIPTextModel(text), 1),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(V1 / "tokenizer"),
        unet=randomise(unet, 2),
        scheduler=diffusers.PNDMScheduler.from_pretrained(V1 / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_bare_files_of_v1(tmp_path: Path) -> None:
    """`.ckpt` as CompVis wrote them and bare `.safetensors`: everything they don't say is v1's."""
    reference = v1_shaped()
    reference.save_pretrained(tmp_path / "folder")
    tensors, _ = single_file(reference, tmp_path / "folder")
    torch.save({"state_dict": tensors, "global_step": 470000}, tmp_path / "model.ckpt")
    save_file(tensors, tmp_path / "model.safetensors")

    def made(path: Path) -> str:
        pipeline = load_pipeline(path, device="cpu", safety="off")
        return pipeline.generate(PROMPT, steps=2, width=64, height=64).provenance[0].pixels_sha256

    expected = made(tmp_path / "folder")
    assert made(tmp_path / "model.ckpt") == expected
    assert made(tmp_path / "model.safetensors") == expected


def test_a_flagged_picture_is_black_as_in_diffusers(tmp_path: Path) -> None:
    """A checker whose thresholds let nothing pass, and one that lets everything."""
    reference = reference_pipeline()
    tower = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 56,
        "projection_dim": 16,
    }
    config = transformers.CLIPConfig(vision_config=tower, text_config={"projection_dim": 16}, projection_dim=16)
    extractor = transformers.CLIPImageProcessor()
    for threshold, flagged in ((-2.0, True), (2.0, False)):
        checker = randomise(StableDiffusionSafetyChecker(config), 3)
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(2.0)
        theirs = diffusers.StableDiffusionPipeline(
            **{**reference.components, "safety_checker": checker, "feature_extractor": extractor}
        )
        theirs.set_progress_bar_config(disable=True)
        theirs.save_pretrained(tmp_path / str(flagged))
        ours = compat.StableDiffusionPipeline.from_pretrained(tmp_path / str(flagged))
        results = [pipe(PROMPT, num_inference_steps=2, generator=torch.Generator()) for pipe in (theirs, ours)]
        for result in results:
            assert result.nsfw_content_detected == [flagged]
            assert np.asarray(result.images[0]).any() != flagged
        ours.safety_checker = None
        unchecked = ours(PROMPT, num_inference_steps=2, generator=torch.Generator())
        assert unchecked.nsfw_content_detected is None
        assert isinstance(unchecked.images[0], Image.Image)
        assert np.asarray(unchecked.images[0]).any()
    off = compat.StableDiffusionPipeline.from_pretrained(tmp_path / "True", safety_checker=None)
    assert off(PROMPT, num_inference_steps=1)["nsfw_content_detected"] is None
