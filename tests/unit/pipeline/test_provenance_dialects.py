"""Settings of other programs' pictures, in texts as those programs write them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.errors import MissingExtra
from sfumato.pipeline.dialects import Settings, settings_of
from sfumato.pipeline.request import Request
from sfumato.pipeline.saving import save_picture
from support.recorded import record

PIXELS = np.zeros((8, 8, 3), np.uint8)


def read_settings(path: Path) -> Settings | None:
    return settings_of(path.read_bytes(), path.name)


def png(folder: Path, texts: dict[str, str]) -> Path:
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    path = folder / "other.png"
    Image.fromarray(PIXELS).save(path, pnginfo=info)
    return path


COMFYUI = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-4.ckpt"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red heart", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["4", 1]}},
}
LINKS = [  # link, from node and slot, to node and slot, type
    [1, 4, 0, 3, 0, "MODEL"],
    [2, 4, 1, 6, 0, "CLIP"],
    [3, 4, 1, 7, 0, "CLIP"],
    [4, 6, 0, 3, 1, "CONDITIONING"],
    [5, 7, 0, 3, 2, "CONDITIONING"],
    [6, 5, 0, 3, 3, "LATENT"],
]
DIALECTS = {
    "AUTOMATIC1111": {
        "parameters": "a red heart\nNegative prompt: ugly\nSteps: 20, Sampler: euler, CFG scale: 8, "
        "Seed: 5, Model: v1-4"
    },
    "ComfyUI": {"prompt": json.dumps(COMFYUI), "workflow": json.dumps({"links": LINKS})},
    "InvokeAI": {
        "invokeai_metadata": json.dumps(
            {
                "app_version": "3.0.2",
                "positive_prompt": "a red heart",
                "negative_prompt": "ugly",
                "seed": 5,
                "steps": 20,
                "cfg_scale": 8.0,
                "scheduler": "euler",
                "model": {"model_name": "v1-4", "base_model": "sd-1", "model_type": "main"},
            }
        )
    },
    "NovelAI": {
        "Description": "a red heart",
        "Software": "NovelAI",
        "Source": "v1-4 AB12CD34",
        "Comment": json.dumps({"steps": 20, "sampler": "euler", "seed": 5, "scale": 8.0, "uc": "ugly"}),
    },
}


@pytest.mark.parametrize("program", DIALECTS)
def test_dialects_are_read(tmp_path: Path, program: str) -> None:
    found = read_settings(png(tmp_path, DIALECTS[program]))
    assert found is not None
    assert found.program == program
    assert found.prompt == "a red heart"
    assert found.negative_prompt == "ugly"
    assert found.model.startswith("v1-4")
    assert found.settings["sampler"] == "euler"
    assert found.settings["seed"] == "5"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_our_pictures_are_understood_by_programs_that_read_a1111(tmp_path: Path, suffix: str) -> None:
    request = Request(prompt="a red heart, süß", negative_prompt="ugly", seed=5, guidance_scale=7.5)
    found = read_settings(save_picture(PIXELS, tmp_path / f"ours{suffix}", record(request, width=8, height=8)))
    assert found is not None
    assert (found.program, found.prompt, found.negative_prompt) == ("AUTOMATIC1111", "a red heart, süß", "ugly")
    assert found.model == "pocket"
    assert found.settings["sampler"] == "PLMS"
    assert (found.settings["steps"], found.settings["seed"], found.settings["cfg_scale"]) == ("50", "5", "7.5")
    assert found.settings["Size"] == "8x8"


def test_a_picture_without_settings_has_none(tmp_path: Path) -> None:
    assert read_settings(png(tmp_path, {})) is None
    assert read_settings(png(tmp_path, {"parameters": "a red heart"})) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["parameters", "prompt", "workflow", "Comment", "Description", "Source", "invokeai_metadata"]),
        st.text() | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps),
    )
)
def test_strange_texts_are_no_dialect(tmp_path: Path, texts: dict[str, str]) -> None:
    assert read_settings(png(tmp_path, texts)) is None


def test_without_its_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sd_parsers.parsers", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[inspect\]"):
        read_settings(png(tmp_path, {}))
