"""When answers are judged on a device that runs ahead of the host, with a CPU in its place, and who is to blame."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfumato import load_pipeline
from sfumato.errors import Cancelled, NumericalError
from sfumato.pipeline import nan_guard
from sfumato.pipeline.nan_guard import guarding
from support.tiny_pipeline import reference_pipeline

CPU = torch.device("cpu")


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on CUDA; what happens to the answers, in order."""
    seen: list[str] = []

    def watched(value: Tensor) -> Callable[[], bool]:
        number = sum(event.startswith("given") for event in seen)
        seen.append(f"given {number}")

        def read() -> bool:
            seen.append(f"read {number}")
            return bool(torch.isfinite(value).all())

        return read

    monkeypatch.setattr(nan_guard, "_AHEAD", {"cpu": 1})
    monkeypatch.setattr(nan_guard, "finiteness", watched)
    return seen


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def test_an_answer_is_read_when_the_next_is_under_way_and_the_last_at_the_end(ahead: list[str]) -> None:
    module = network()
    with guarding("it", module, CPU) as check:
        for _ in range(3):
            check(module(torch.ones(1, 2)), lambda: module(torch.ones(1, 2)))
    assert ahead == ["given 0", "given 1", "read 0", "given 2", "read 1", "read 2"]


def test_on_a_cpu_each_is_judged_at_once() -> None:
    module, bad = network(), torch.full((1, 2), math.inf)
    with (
        pytest.raises(NumericalError, match="it gave NaN or infinity, in what it was given"),
        guarding("it", module, CPU) as check,
    ):
        check(module(bad), lambda: module(bad))
        pytest.fail("the answer wasn't judged")


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_the_first_bad_answer_is_the_one_computed_anew(ahead: list[str], bad: int) -> None:
    """Whichever of three it is; those after it are bad too, and not looked at."""
    module, again = network(), []

    def run(i: int) -> Tensor:
        with torch.no_grad():
            module[1].weight[0, 0] = math.nan if i >= bad else 0.0
        again.append(i)
        return module(torch.ones(1, 2))

    with (
        pytest.raises(NumericalError, match=r"it gave NaN or infinity, first in its layer 1\b"),
        guarding("it", module, CPU) as check,
    ):
        for i in range(3):
            check(run(i), partial(run, i))
    assert again[-1] == bad
    assert f"read {bad + 1}" not in ahead


def test_a_sampler_that_meets_nan_first_does_not_hide_the_layer(ahead: list[str]) -> None:
    module = network()
    with torch.no_grad():
        module[0].bias[0] = math.nan
    with pytest.raises(NumericalError, match=r"first in its layer 0\b"), guarding("it", module, CPU) as check:
        check(module(torch.ones(1, 2)), lambda: module(torch.ones(1, 2)))
        raise NumericalError("the sampler met NaN")
    with pytest.raises(NumericalError, match="the sampler met NaN"), guarding("it", network(), CPU):
        raise NumericalError("the sampler met NaN")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ValueError("a callback met NaN"), True),
        (IndexError("so did a sampler"), True),
        (Cancelled("stop"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("can't allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_whatever_stumbles_over_nan_does_not_hide_the_layer(
    ahead: list[str], error: BaseException, named: bool
) -> None:
    """Nothing is computed anew for who wants to stop, or where there is no memory for it."""
    module = network()
    with torch.no_grad():
        module[0].bias[0] = math.nan
    with pytest.raises(NumericalError if named else type(error)) as raised, guarding("it", module, CPU) as check:
        check(module(torch.ones(1, 2)), lambda: module(torch.ones(1, 2)))
        raise error
    assert (raised.value.__context__ if named else raised.value) is error
    assert ("read 0" in ahead) is named


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_sde", "dpm_adaptive"])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_picture_with_nan_is_never_made(tmp_path: Path, ahead: list[str], part: str, sampler: str) -> None:
    layer = {"unet": "up_blocks.0.resnets.0.conv1", "vae": "decoder.mid_block.resnets.1.conv2"}[part]
    reference = reference_pipeline()
    with torch.no_grad():
        getattr(reference, part).get_submodule(layer).weight[0, 0, 0, 0] = math.nan
    reference.save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, device="cpu", safety="off")
    with pytest.raises(NumericalError, match=rf"first in its layer {layer}\b"):
        pipe.generate("crown", steps=2, sampler=sampler, guidance_scale=4.0)
