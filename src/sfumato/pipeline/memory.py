"""How much memory a request takes beside the loaded model, and whether there is as much, said before it starts.

The estimate adds up the maps that are held at the worst moment, counted in channels of the finest level; it is close
to what was measured (docs/memory.md) and rather below it, since a run that would have fitted must not be refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from sfumato.engines.engine import Engine
from sfumato.engines.names import MEMORY_MODES
from sfumato.engines.tiling import tiling_of
from sfumato.errors import InvalidRequest, OutOfMemory
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.unet import UNetConfig
from sfumato.nn.lazy_weights import bytes_held, bytes_widened, keep, widen
from sfumato.pipeline.request import Request, upscaled
from sfumato.runtime import free_memory, logger, return_freed_memory

if TYPE_CHECKING:
    from sfumato.pipeline.model import Model

_TILING: Mapping[str, str] = {"auto": "auto", "lean": "exact", "low": "frugal"}

_GUIDED = 2  # answers in one forward: with the prompt and without


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a run's memory depends on: pixels of the largest picture it makes, pictures at a time, the tiling.

    `compiled` says that the compiled kernels run the networks, `itemsize` is a number's bytes.
    """

    width: int
    height: int
    batch: int
    tiling: str
    compiled: bool
    encodes: bool
    itemsize: int


def tiling_in(memory: str, tiling: str | None) -> str:
    """How large pictures pass the autoencoder: as told, else as belongs to the memory mode. Raises `InvalidRequest`
    for a name that is no memory mode."""
    if memory not in _TILING:
        raise InvalidRequest(f"memory {memory!r} is unknown: use {', '.join(MEMORY_MODES)}", field="memory")
    return _TILING[memory] if tiling is None else tiling


def settle(modules: Sequence[nn.Module], engine: Engine, memory: str, device: torch.device, dtype: torch.dtype) -> None:
    """Leave a loaded model's weights where they are or widen them, as its engine and memory mode ask.

    The compiled kernels read stored weights as fast as widened ones; others are given float32 unless memory is short.
    `auto` leaves them in their file too where they would take more than 60 % of what is free: the pictures are the
    same. Raises `OutOfMemory` where widened weights don't fit.
    """
    if memory != "auto" and (device.type != "cpu" or dtype is not torch.float32):
        logger.warning("memory %s: weights are read layer by layer in float32 on a CPU only, not here", memory)
        return
    free, streams = free_memory(device), engine.name in _STREAM
    if memory != "auto":
        return_freed_memory()
        if streams:
            return
        logger.warning("memory %s: engine %s needs the whole model in memory", memory, engine.name)
    elif streams:
        held = sum(bytes_held(module, widened=engine.kernels is None) for module in modules)
        if free is not None and held > _SHARE * free:
            return_freed_memory()
            logger.warning(
                "memory auto: the model takes %s, more than %.0f %% of the %s that are free: its weights stay in their "
                "file, as with lean",
                gigabytes(held),
                100 * _SHARE,
                gigabytes(free),
            )
            return
        if engine.kernels is not None:
            for module in modules:
                keep(module)
            return
    needed = sum(map(bytes_widened, modules))
    if free is not None and needed > free:
        raise OutOfMemory(
            f"the model takes {gigabytes(needed)} as float32, {gigabytes(free)} are free: use --memory lean"
        )
    for module in modules:
        widen(module)


def warm_fits(shapes: Iterable[Sequence[int]], engine: str, memory: str, device: torch.device) -> bool:
    """Whether to read a model's warm parts: `shapes` are its weights', `engine` the name that was asked for.

    What is to be left in its file is smallest where it came from. `settle` does so in `auto` by what was loaded: the
    warm parts are no choice where they would have it done, since the model may fit as its own file stores it.
    """
    if memory != "auto":
        return False
    if device.type != "cpu" or engine not in _STREAM | {"auto"}:
        return True
    free = free_memory(device)
    return free is None or 4 * sum(map(prod, shapes)) <= _SHARE * free


_SHARE = 0.6  # of free memory, for the weights in `auto`
_STREAM = frozenset({"winograd", "winograd-plain", "bf16", "eager"})
"""Engines that run layers whose weights are stored in another dtype, and have gone from memory meanwhile."""


def check_memory(model: Model, request: Request, batch: int) -> None:
    """Raise `OutOfMemory` for a request that needs more than is free: with both numbers, and what to use instead."""
    free = free_memory(model.device)
    if free is None:
        return
    shape = shape_of(model, request, batch)
    needed = bytes_needed(model.unet.config, model.autoencoder.config, shape)
    if needed > free:
        raise OutOfMemory(
            f"{shape.width}×{shape.height} pixels need about {gigabytes(needed)}, {gigabytes(free)} are free: "
            + _advice(model, shape, free)
        )


def shape_of(model: Model, request: Request, batch: int) -> Shape:
    """Of a resolved request."""
    assert request.width and request.height
    return Shape(
        width=upscaled(request.width, request.upscale),
        height=upscaled(request.height, request.upscale),
        batch=batch,
        tiling=model.engine.tiling,
        compiled=model.engine.kernels is not None,
        encodes=request.init_image is not None or request.upscale > 1.0,
        itemsize=model.dtype.itemsize,
    )


def bytes_needed(unet: UNetConfig, autoencoder: AutoencoderConfig, shape: Shape) -> int:
    """At the worst moment of sampling, decoding or encoding; they don't overlap."""
    cells = shape.batch * _GUIDED * (shape.height // autoencoder.factor) * (shape.width // autoencoder.factor)
    sampling = cells * _unet_channels(unet, compiled=shape.compiled)
    decoding = encoding = _passing(autoencoder, shape, _decoder_channels(autoencoder, shape.compiled))
    if shape.encodes:
        encoding = _passing(autoencoder, shape, _encoder_channels(autoencoder, shape.compiled))
    finished = 4 * shape.batch * shape.height * shape.width * autoencoder.out_channels * 3  # float32, and a copy or two
    return int(max(sampling, decoding, encoding)) * shape.itemsize + finished


def _unet_channels(config: UNetConfig, *, compiled: bool) -> float:
    """Channels at the finest level: what the way up will need, and the layer at work."""
    finest = config.block_channels[0]
    layers = config.layers_per_block + 1
    skips = sum(layers * channels / 4.0**level for level, channels in enumerate(config.block_channels))
    return skips + finest * (7 if compiled else 16)


def _decoder_channels(config: AutoencoderConfig, compiled: bool) -> dict[str, float]:
    """Channels at the picture's own resolution, by tiling."""
    finest, below = config.block_channels[0], config.block_channels[min(1, len(config.block_channels) - 1)]
    return {
        # the last level's input, and a residual block's two maps and its way around
        "none": below + 3 * finest if compiled else 3 * below + finest,
        "exact": below + finest,
        "frugal": below / 4 + finest,
    }


def _encoder_channels(config: AutoencoderConfig, compiled: bool) -> dict[str, float]:
    finest = config.block_channels[0]
    # the level's input is held beside a block's; eager writes a norm, and its activation, as maps of their own
    return {"none": finest * (4 if compiled else 5), "exact": 2 * finest, "frugal": finest}


def _passing(config: AutoencoderConfig, shape: Shape, channels: dict[str, float]) -> float:
    """Numbers held while one picture passes the autoencoder."""
    tiling = tiling_of(shape.tiling, shape.height, shape.width, config)
    if tiling == "blend":
        return channels["none"] * min(config.sample_size, shape.height) * min(config.sample_size, shape.width)
    return channels[tiling] * shape.height * shape.width


def _advice(model: Model, shape: Shape, free: int) -> str:
    """The first thing that would fit, in the order of how little it changes."""
    for change, words in _alternatives(shape):
        if bytes_needed(model.unet.config, model.autoencoder.config, change) <= free:
            return f"use {words}"
    return "use a smaller size"


def _alternatives(shape: Shape) -> Iterator[tuple[Shape, str]]:
    singles = [(shape, "")] if shape.batch == 1 else [(shape, ""), (replace(shape, batch=1), "--batch-size 1")]
    for single, words in singles:
        if words:
            yield single, words
        for tiling in ("exact", "frugal", "blend"):
            yield replace(single, tiling=tiling), f"{words} --vae-tiling {tiling}".strip()
    for part in range(15, 0, -1):
        width, height = (max(side * part // 16 // 64 * 64, 64) for side in (shape.width, shape.height))
        yield replace(shape, width=width, height=height), f"{width}×{height} pixels at most"


def gigabytes(count: int) -> str:
    """As people say it: "2.4 GB"."""
    return f"{count / 1e9:.1f} GB"
