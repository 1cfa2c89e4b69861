"""DeepCache and token merging in whole pictures: which calls are whole, and that nothing depends on neighbours."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from sfumato import Pipeline, Request, load_pipeline
from sfumato.errors import InvalidRequest
from sfumato.models.unet_inputs import UNetInputs
from sfumato.pictures.pixels import psnr
from support.tiny_pipeline import reference_pipeline

OPTIONS: dict[str, Any] = {"steps": 4, "guidance_scale": 4.0, "seed": 3}
SHORT: dict[str, Any] = {"cache_interval": 2, "cache_depth": 2, "token_merging": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return load_pipeline(folder, device="cpu", safety="off", watermark=False)


@pytest.fixture(scope="module")
def batched(folder: Path) -> Pipeline:
    return load_pipeline(folder, device="cpu", safety="off", watermark=False, batch_size=4)


class Watched:
    """A pipeline whose calls with shortcuts are noted: rows, and "whole" or "outer"."""

    def __init__(self, folder: Path) -> None:
        self.calls: list[tuple[int, str]] = []
        self.pipeline = load_pipeline(folder, device="cpu", safety="off", watermark=False)
        model = self.pipeline.model

        def noted(inputs: UNetInputs) -> Tensor:
            assert inputs.shortcuts is not None
            self.calls.append((len(inputs.context), "whole" if inputs.shortcuts.deep is None else "outer"))
            return model.engine.unet(inputs)

        self.pipeline.model = dataclasses.replace(model, engine=dataclasses.replace(model.engine, unet=noted))


def pixels(pipeline: Pipeline, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pipeline.generate("crown", **{**OPTIONS, **options}).images[0])


def test_interval_one_and_nothing_merged_change_no_byte(pipeline: Pipeline) -> None:
    exact = pixels(pipeline)
    assert np.array_equal(pixels(pipeline, cache_interval=1, cache_depth=3, token_merging=0.0), exact)
    for name, value in SHORT.items():
        if name != "cache_depth":
            assert not np.array_equal(pixels(pipeline, **{name: value}), exact)


WHOLE, OUTER = (2, "whole"), (2, "outer")
# σ of 8 karras steps: 14.6, 7.9, 4.03, 1.9, 0.8, 0.3, 0.1, 0.03


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sampler": "euler", "steps": 5, "cache_interval": 2}, [WHOLE, OUTER, WHOLE, OUTER, WHOLE]),
        ({"sampler": "euler", "steps": 5, "cache_interval": 3}, [WHOLE, OUTER, OUTER, WHOLE, OUTER]),
        ({"sampler": "heun", "steps": 3, "cache_interval": 2}, [WHOLE, OUTER, WHOLE, OUTER, WHOLE]),
        ({"sampler": "plms", "steps": 3, "cache_interval": 2}, [WHOLE, OUTER, WHOLE, OUTER]),
        (  # a pass of its own begins whole
            {"sampler": "euler", "steps": 3, "cache_interval": 2, "upscale": 1.5, "upscale_strength": 0.7},
            [WHOLE, OUTER, WHOLE, WHOLE, OUTER],
        ),
        (  # what was kept for both serves one of them
            {"sampler": "euler", "spacing": "karras", "cache_interval": 3, "steps": 8, "guidance_interval": (4, 99)},
            [WHOLE, OUTER, OUTER, (1, "whole"), (1, "outer"), (1, "outer"), (1, "whole"), (1, "outer")],
        ),
        (
            {"sampler": "euler", "spacing": "karras", "cache_interval": 4, "steps": 8, "guidance_interval": (4, 99)},
            [WHOLE, OUTER, OUTER, (1, "outer"), (1, "whole"), (1, "outer"), (1, "outer"), (1, "outer")],
        ),
        (  # what was kept for one doesn't serve both
            {"sampler": "euler", "spacing": "karras", "cache_interval": 3, "steps": 8, "guidance_interval": (0, 7)},
            [(1, "whole"), (1, "outer"), WHOLE, OUTER, OUTER, WHOLE, OUTER, OUTER],
        ),
    ],
)
def test_which_calls_are_whole(folder: Path, options: dict[str, Any], expected: list[tuple[int, str]]) -> None:
    watched = Watched(folder)
    made = watched.pipeline.generate("crown", guidance_scale=4.0, **options)
    assert watched.calls == expected
    assert made.model_calls == (len(expected),)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral"])
def test_neighbours_change_nothing(pipeline: Pipeline, batched: Pipeline, sampler: str) -> None:
    requests = [
        Request(prompt=prompt, seed=i, steps=4, guidance_scale=4.0, sampler=sampler, **SHORT)
        for i, prompt in enumerate(("a red heart", "crown", "", "flag: Japan"))
    ]
    together = batched.generate(requests).images
    for request, picture in zip(requests, together, strict=True):
        assert psnr(np.asarray(picture), np.asarray(pipeline.generate(request).images[0])) >= 50.0


@pytest.mark.parametrize("masked", [False, True], ids=["from a picture", "inpainting"])
def test_from_pictures(pipeline: Pipeline, masked: bool) -> None:
    """Every call whole and nothing merged, or shortcuts: the known part stays, and the rest comes near."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((16, 32), 255, dtype=np.uint8), ((16, 0), (0, 0))))
    options: dict[str, Any] = {"init_image": picture, "strength": 0.6, "steps": 8, "sampler": "dpmpp_2m"}
    if masked:
        options["mask"] = mask
    exact, short = pixels(pipeline, **options), pixels(pipeline, **options, **SHORT)
    assert not np.array_equal(exact, short)
    if masked:
        assert np.array_equal(short[:16], np.asarray(picture)[:16])


def test_an_engine_that_leaves_nothing_out_refuses(folder: Path) -> None:
    plain = load_pipeline(folder, device="cpu", safety="off")
    engine = dataclasses.replace(plain.model.engine, name="openvino", shortens=False)
    plain.model = dataclasses.replace(plain.model, engine=engine)
    with pytest.raises(InvalidRequest, match="cache_interval 2: engine openvino can leave nothing out"):
        plain.generate("crown", cache_interval=2)
    with pytest.raises(InvalidRequest, match=r"token_merging 0\.5: engine openvino"):
        plain.check([Request(prompt="crown", token_merging=0.5)])
    assert plain.generate("crown", preset="fast", steps=2).model_calls == (2,)


def test_a_depth_that_the_model_hasnt_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match=r"cache_depth 6: .* has 6 layers on the way up: use at most 5"):
        pipeline.generate("crown", cache_interval=2, cache_depth=6)
