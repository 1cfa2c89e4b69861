"""The trade of presets as a sheet and numbers: exact is the measure, and everything is painted from the same seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sfumato import Pipeline, load_pipeline
from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import Pixels, psnr
from sfumato.pipeline.presets import PRESETS
from sfumato.report.evaluation.preset_quality import PresetImages, generate_by_presets, measured, preset_sheet
from sfumato.report.features.network import Features, Identity
from support.tiny_pipeline import reference_pipeline

PROMPTS = ("crown", "a red heart")


class Means:
    """A network whose features are the mean colour and its square: their Fréchet distance is known by hand."""

    identity = Identity(name="means", file="", sha256="", resize="")

    def features(self, pictures: list[Pixels]) -> Features:
        return {"means": np.stack([picture.mean(axis=(0, 1)).astype(np.float32) for picture in pictures])}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return load_pipeline(path, device="cpu", safety="off", watermark=False)


def test_every_preset_paints_the_same_seeds(pipeline: Pipeline) -> None:
    ticks = iter(range(100))
    generated = generate_by_presets(pipeline, PROMPTS, seed=5, steps=3, clock=lambda: float(next(ticks)))
    assert list(generated) == list(PRESETS)
    single = pipeline.generate("a red heart", seed=6, preset="fast", steps=3)
    assert np.array_equal(generated["fast"].pictures[1], np.asarray(single.images[0]))
    assert {one.seconds for one in generated.values()} == {1.0}
    assert [one.model_calls for one in generated.values()] == [4, 3, 3]
    sheet = preset_sheet(generated, PROMPTS)
    assert sheet.shape[1] > 3 * generated["exact"].pictures[0].shape[1]
    with pytest.raises(InvalidRequest, match="nothing to paint"):
        generate_by_presets(pipeline, ())


def test_numbers_are_those_of_the_formulas() -> None:
    def flat(value: int) -> Pixels:
        return np.full((16, 16, 3), value, dtype=np.uint8)

    exact = PresetImages(pictures=(flat(10), flat(30)), seconds=4.0, model_calls=51)
    other = PresetImages(pictures=(flat(13), flat(33)), seconds=1.0, model_calls=20)
    found = measured({"exact": exact, "fast": other}, PROMPTS, networks=[Means()])
    assert found["fast"]["time"] == 0.25 and found["fast"]["calls"] == 20
    assert found["exact"]["psnr"] == math.inf
    assert found["fast"]["psnr"] == pytest.approx(20 * math.log10(255 / 3)) == psnr(flat(10), flat(13))
    # the same spread, means 3 apart in each of three channels
    assert found["fast"]["frechet/means"] == pytest.approx(27.0, rel=1e-5)
    assert "frechet/means" not in found["exact"]
    real = measured({"exact": exact, "fast": other}, PROMPTS, networks=[Means()], reference=[flat(13), flat(33)])
    assert real["fast"]["frechet/means"] == pytest.approx(0.0, abs=1e-6)
    assert real["exact"]["frechet/means"] == pytest.approx(27.0, rel=1e-5)
