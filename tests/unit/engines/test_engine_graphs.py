"""What is kept and copied around captured forwards, with a recorder that needs no GPU: it computes anew on replay."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato import Pipeline, load_pipeline
from sfumato.engines.engine import called_as_written
from sfumato.engines.graphs import GraphCache, Graphed, GraphedUNet, Replay
from sfumato.engines.projected import project, projected_copy
from sfumato.models.unet_inputs import UNetInputs
from support.engine_networks import gaussian, relative, tiny_unet
from support.tiny_pipeline import reference_pipeline


class Recorder:
    """Records as CUDA does: one answer's tensor, written to by each replay."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        self.recorded += 1
        answer = torch.full_like(run(), torch.nan)  # nothing is computed while a graph is recorded

        def replay() -> None:
            self.replayed += 1
            answer.copy_(run())

        return answer, replay


def double(x: Tensor, y: Tensor) -> Tensor:
    return 2 * x + y


def test_each_shape_is_recorded_once_and_answers_stay() -> None:
    recorder = Recorder()
    graphed = Graphed(double, capture=recorder)
    cases = [(value, size) for value in (1.0, 2.0, 3.0) for size in (2, 3)]
    answers = [(graphed(torch.full((size,), value), torch.ones(size)), 2 * value + 1, size) for value, size in cases]
    for answer, expected, size in answers:
        assert torch.equal(answer, torch.full((size,), expected))
    assert (recorder.recorded, recorder.replayed) == (2, 6)


def test_dtypes_are_told_apart_and_inputs_are_not_written_to() -> None:
    recorder = Recorder()
    graphed = Graphed(double, capture=recorder)
    x, y = torch.ones(2), torch.zeros(2)
    assert graphed(x, y).dtype is torch.float32
    assert graphed(x.half(), y.half()).dtype is torch.float16
    graphed(x + 1, y)
    assert torch.equal(x, torch.ones(2))
    assert recorder.recorded == 2


def test_the_longest_unused_graph_goes_first() -> None:
    recorder = Recorder()
    graphed = Graphed(double, capture=recorder)
    for size in (1, 2, 3, 4, 1, 5, 1):  # 2 is the oldest when 5 comes
        graphed(torch.ones(size), torch.ones(size))
    assert recorder.recorded == 5
    graphed(torch.ones(2), torch.ones(2))
    assert recorder.recorded == 6


def test_all_graphs_of_an_engine_go_when_memory_runs_out_for_another() -> None:
    cache, room, held = GraphCache(), 2, []

    class Held:
        def __init__(self, replay: Replay) -> None:
            held.append(weakref.ref(self))
            self._replay = replay

        def __call__(self) -> None:
            self._replay()

    recorder = Recorder()

    def record(run: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        gc.collect()
        if sum(one() is not None for one in held) >= room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        answer, replay = recorder(run)
        return answer, Held(replay)

    first, second = (Graphed(double, capture=record, cache=cache) for _ in "ab")
    for graphed, size in ((first, 1), (second, 1), (first, 2), (second, 1)):
        assert torch.equal(graphed(torch.ones(size), torch.ones(size)), torch.full((size,), 3.0))
    assert recorder.recorded == 4  # the third call took the place of both, and the last one was recorded anew
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        first(torch.ones(3), torch.ones(3))


def test_weights_may_change_and_move() -> None:
    layer, recorder = nn.Linear(2, 2), Recorder()
    graphed = Graphed(layer, capture=recorder, cache=GraphCache(layer.parameters()))
    x = torch.ones(1, 2)
    graphed(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(graphed(x), layer(x))
    assert recorder.recorded == 1
    layer.weight.data = layer.weight.data.clone()
    assert torch.equal(graphed(x), layer(x))
    assert recorder.recorded == 2


def test_calls_in_and_outside_inference_mode_share_a_graph() -> None:
    recorder = Recorder()
    graphed = Graphed(double, capture=recorder)
    with torch.inference_mode():
        graphed(torch.ones(2), torch.ones(2))
    assert torch.equal(graphed(torch.ones(2), torch.zeros(2)), torch.full((2,), 2.0))
    assert recorder.recorded == 1


def test_what_is_steady_is_prepared_once_for_a_tensor_and_numbers_are_tensors() -> None:
    prepared: list[float] = []

    def prepare(steady: Tensor) -> Tensor:
        prepared.append(steady[0].item())
        return 10 * steady

    graphed = Graphed(lambda x, factor, steady: factor * x + steady, prepare=prepare, capture=Recorder())
    x, one, two = torch.ones(2), torch.ones(2), torch.full((2,), 2.0)
    for factor, steady, expected in ((3.0, one, 13.0), (4.0, one, 14.0), (4.0, two, 24.0), (5.0, one, 15.0)):
        assert torch.equal(graphed(x, factor, static=steady), torch.full((2,), expected))
    assert prepared == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("name", ["v1-like", "pocket-like"])
@torch.inference_mode()
def test_a_projected_copy_answers_as_the_network(name: str) -> None:
    unet = tiny_unet(name)
    x, t = gaussian(2, 4, 16, 24), torch.tensor([981.0, 12.5])
    context = gaussian(2, 7, unet.config.context_dim, seed=2)
    copied = projected_copy(unet)
    assert relative(copied(x, t, project(unet, context)), unet(x, t, context)) <= 1e-6
    assert {id(weight) for weight in copied.parameters()} < {id(weight) for weight in unet.parameters()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return path


CALLS = {
    "plain": {},
    "two in a batch": {"prompt": ["a red heart", "crown"], "negative_prompt": "blue"},
    "several conditions": {"prompt": "a red heart AND crown :0.5", "prompt_syntax": "weighted"},
    "unguided": {"guidance_scale": 1.0},
    "guided for a while": {"guidance_interval": (0.5, 5.0)},
    "inpainting": {"init_image": Image.new("RGB", (64, 64), "red"), "mask": Image.new("L", (64, 64), 255)},
    "two calls a step": {"sampler": "heun"},
}


@pytest.mark.parametrize("name", CALLS)
def test_pictures_are_those_of_the_guidance_outside_the_graph(folder: Path, name: str) -> None:
    eager = load_pipeline(folder, device="cpu", safety="off", watermark=False, engine="eager", batch_size=2)
    model, recorder = eager.model, Recorder()
    network = GraphedUNet(
        projected_copy(model.unet), model.dtype, prepare=partial(project, model.unet), capture=recorder
    )
    engine = dataclasses.replace(model.engine, unet=network, guides=True, shortens=False)
    graphed = Pipeline(dataclasses.replace(model, engine=engine), safety="off", watermark=False, batch_size=2)
    fields: dict[str, Any] = {"prompt": "a red heart", "steps": 4, "seed": 3, **CALLS[name]}
    expected, found = eager.generate(**fields), graphed.generate(**fields)
    assert recorder.replayed == found.model_calls[0] == expected.model_calls[0] > 0
    for one, other in zip(found.images, expected.images, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize("fields", [{"token_merging": 0.5}, {"cache_interval": 2}], ids=str)
def test_what_leaves_something_out_is_not_the_recorded_forward(folder: Path, fields: dict[str, Any]) -> None:
    pipe = load_pipeline(folder, device="cpu", safety="off", watermark=False, engine="eager")
    recorder = Recorder()
    shortened = called_as_written(pipe.model.unet)
    network = GraphedUNet(pipe.model.unet, pipe.model.dtype, shortened=shortened, capture=recorder)
    engine = dataclasses.replace(pipe.model.engine, unet=network, guides=True)
    graphed = Pipeline(dataclasses.replace(pipe.model, engine=engine), safety="off", watermark=False)
    request: dict[str, Any] = {"prompt": "a red heart", "steps": 3, "seed": 3}
    found, expected = (one.generate(**request, **fields).images[0] for one in (graphed, pipe))
    assert recorder.recorded == 0
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, pipe.generate(**request).images[0])


def test_what_is_rescaled_is_combined_outside(folder: Path) -> None:
    pipe = load_pipeline(folder, device="cpu", safety="off", watermark=False, engine="eager")
    recorder = Recorder()
    network = GraphedUNet(pipe.model.unet, pipe.model.dtype, capture=recorder)
    eager = pipe.model.engine

    def unet(inputs: UNetInputs) -> Tensor:
        return eager.unet(inputs) if inputs.factors is None else network(inputs)

    engine = dataclasses.replace(eager, unet=unet, guides=True)
    graphed = Pipeline(dataclasses.replace(pipe.model, engine=engine), safety="off", watermark=False)
    fields: dict[str, Any] = {"prompt": "a red heart", "steps": 2, "guidance_rescale": 0.7}
    assert np.array_equal(graphed.generate(**fields).images[0], pipe.generate(**fields).images[0])
    assert recorder.replayed == 0
