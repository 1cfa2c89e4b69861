"""What a picture must hold to be made again, and how two makings are compared."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import Pipeline, load_pipeline
from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import pixels_sha256
from sfumato.pictures.untrusted_pictures import open_picture
from sfumato.pipeline.replaying import recorded_in, replay, with_inputs
from sfumato.pipeline.request import Request
from sfumato.pipeline.saving import save_picture
from sfumato.safety.verdict import Verdict, judge


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("pocket", safety="off", watermark=False)


@pytest.fixture
def saved(pipeline: Pipeline, tmp_path: Path) -> Path:
    made = pipeline.generate("a red heart", steps=1, seed=3)
    return save_picture(np.asarray(made.images[0]), tmp_path / "a.png", made.provenance[0])


def test_a_picture_made_again_is_identical(pipeline: Pipeline, saved: Path) -> None:
    result = replay(saved, pipeline, recorded_in(saved).request)
    assert result.identical and result.untouched and result.psnr == math.inf and not result.differences
    assert hashlib.sha256(result.pixels.tobytes()).hexdigest() == result.recorded.pixels_sha256


def test_a_lossy_file_is_compared_by_the_hash_of_what_went_in(pipeline: Pipeline, saved: Path, tmp_path: Path) -> None:
    pixels, record = np.asarray(Image.open(saved)), recorded_in(saved)
    lossy = save_picture(pixels, tmp_path / "a.jpg", record)
    result = replay(lossy, pipeline, recorded_in(lossy).request)
    assert result.identical and result.untouched is None
    assert result.psnr is not None and 20 < result.psnr < 60  # JPEG's own loss


def test_a_touched_file_is_told_from_a_failed_replay(pipeline: Pipeline, saved: Path, tmp_path: Path) -> None:
    pixels, record = np.array(Image.open(saved)), recorded_in(saved)
    pixels[0, 0] ^= 1
    touched = replay(save_picture(pixels, tmp_path / "b.png", record), pipeline, record.request)
    assert not touched.identical and touched.untouched is False
    assert touched.current.pixels_sha256 == record.pixels_sha256
    assert touched.psnr == pytest.approx(10 * math.log10(255**2 / (3 / pixels.size)))
    failed = replay(saved, pipeline, record.request.replace(seed=4))
    assert not failed.identical and failed.untouched is True
    assert failed.current.pixels_sha256 == pixels_sha256(failed.pixels) != record.pixels_sha256


def test_only_pictures_that_can_be_made_again(pipeline: Pipeline, saved: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(InvalidRequest, match=r"plain\.png has no record of sfumato"):
        recorded_in(tmp_path / "plain.png")
    made = pipeline.generate("a", steps=1, generator=torch.Generator().manual_seed(0))
    path = save_picture(np.asarray(made.images[0]), tmp_path / "g.png", made.provenance[0])
    with pytest.raises(InvalidRequest, match="a generator of the caller's own"):
        recorded_in(path)


def test_input_pictures_are_known_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original, other = tmp_path / "in.png", tmp_path / "other.png"
    Image.new("RGB", (16, 16), "red").save(original)
    Image.new("RGB", (16, 16), "blue").save(other)
    request = Request(prompt="a", init_image=open_picture(Path("in.png"))[1])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert with_inputs(request, elsewhere) == request  # by its relative path
    moved = original.rename(elsewhere / "in.png")
    found = with_inputs(request, elsewhere).init_image  # by its name, beside the picture
    assert found is not None and found.path == str(moved)
    moved = moved.rename(tmp_path / "renamed.png")
    with pytest.raises(InvalidRequest, match="--init-image"):
        with_inputs(request, elsewhere)
    given = with_inputs(request, elsewhere, init_image=moved).init_image
    assert given is not None and given.path == str(moved)
    with pytest.raises(InvalidRequest, match="another file than the one used"):
        with_inputs(request, elsewhere, init_image=other)
    with pytest.raises(InvalidRequest, match="was made without one"):
        with_inputs(request, elsewhere, init_image=moved, mask=other)


def test_a_record_of_a_variation_without_its_seed_is_made_again(pipeline: Pipeline, tmp_path: Path) -> None:
    """It was taken, before it was refused, and changed nothing."""
    made = pipeline.generate("a red heart", steps=1, seed=5)
    old = made.provenance[0].request.replace(variation_strength=0.3)
    record = dataclasses.replace(made.provenance[0], request=old)
    path = save_picture(np.asarray(made.images[0]), tmp_path / "old.png", record)
    with pytest.raises(InvalidRequest, match="needs the seed to vary towards"):
        pipeline.generate(old)
    assert replay(path, pipeline, with_inputs(recorded_in(path).request, tmp_path)).identical


def test_a_picture_from_what_the_caller_passed_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    conditioning = pipeline.encode_prompt("a blue heart")
    latents = torch.zeros(1, *pipeline.encode_image(Image.new("RGB", (128, 128))).shape[1:])
    made = pipeline.generate("a red heart", steps=1, latents=latents, conditioning=conditioning)
    path = save_picture(np.asarray(made.images[0]), tmp_path / "l.png", made.provenance[0])
    with pytest.raises(InvalidRequest, match="made with latents and a conditioning of the caller's own, which no file"):
        recorded_in(path)


def test_a_blurred_picture_made_again_unblurred_says_why_it_differs(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sfumato.safety.policy.OpenNsfwChecker", lambda: flag_all)
    made = load_pipeline("pocket", safety="blur", watermark=False).generate("a red heart", steps=1, seed=3)
    record = made.provenance[0]
    path = save_picture(np.asarray(made.images[0]), tmp_path / "blurred.png", record)
    result = replay(path, pipeline, record.request)
    assert not result.identical and result.differences == {"alteration": ("blur", "none")}


def flag_all(images: Sequence[Image.Image]) -> list[Verdict]:
    return [judge("test", {"all": 1.0}, ("all",)) for _ in images]
