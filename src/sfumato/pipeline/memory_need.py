"""How much memory a request takes beside the loaded model, and whether there is as much, said before it starts.

The estimate adds up the maps that are held at the worst moment, counted in channels of the finest level; it is close
to what was measured (docs/memory.md) and rather below it, since a run that would have fitted must not be refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from sfumato.engines.tiling import tiling_of
from sfumato.errors import OutOfMemory
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.pipeline.model import Model
from sfumato.pipeline.request import Request, upscaled
from sfumato.runtime import free_memory, gigabytes, is_of_memory

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


@dataclass(slots=True)
class _Device:
    """The needs of the calls that run on a device now, and the most that was free there since the first began."""

    needs: list[int]
    free: int


_devices: dict[torch.device, _Device] = {}
_lock = threading.RLock()


@contextmanager
def memory_set_aside(model: Model, batches: Mapping[Request, int]) -> Iterator[None]:
    """Set aside, while a call runs, what the largest of its batches needs, so that calls beside it are told what is
    left. `batches` are resolved requests and how many run together. Raises `OutOfMemory` as `check_memory` does."""
    with _lock:
        needed = max(check_memory(model, request, batch) for request, batch in batches.items())
        device = _devices.setdefault(model.device, _Device(needs=[], free=free_memory(model.device) or 0))
        device.needs.append(needed)
    try:
        yield
    finally:
        with _lock:
            device.needs.remove(needed)
            if not device.needs:
                del _devices[model.device]


def _left(device: torch.device) -> int | None:
    """Bytes that a call may count on, beside those that run. What they hold already is no longer free, so the two
    numbers aren't added up: the smaller one counts."""
    free = free_memory(device)
    with _lock:
        running = _devices.get(device)
        if free is None or running is None:
            return free
        running.free = max(running.free, free)
        return max(min(free, running.free - sum(running.needs)), 0)


def check_memory(model: Model, request: Request, batch: int) -> int:
    """Estimate the bytes that a request needs, `batch` pictures at a time. Raises `OutOfMemory` where that is more than
    is free: with both numbers, and what to use instead."""
    free = _left(model.device)
    shape = shape_of(model, request, batch)
    needed = bytes_needed(model.unet.config, model.autoencoder.config, shape)
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{shape.width}×{shape.height} pixels need about {gigabytes(needed)}, {gigabytes(free)} are free: "
            + _advice(model, shape, free)
        )
    return needed


def shape_of(model: Model, request: Request, batch: int) -> Shape:
    """What a resolved request of this model depends on, `batch` pictures at a time."""
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
    """Bytes held at the worst moment of sampling, decoding or encoding, which don't overlap."""
    cells = shape.batch * _GUIDED * (shape.height // autoencoder.factor) * (shape.width // autoencoder.factor)
    sampling = cells * _unet_channels(unet, compiled=shape.compiled)
    decoding = encoding = _passing(autoencoder, shape, _decoder_channels(autoencoder, shape.compiled))
    if shape.encodes:
        encoding = _passing(autoencoder, shape, _encoder_channels(autoencoder, shape.compiled))
    finished = 4 * shape.batch * shape.height * shape.width * autoencoder.out_channels * 3  # float32, and a copy or two
    return int(max(sampling, decoding, encoding)) * shape.itemsize + finished


def _unet_channels(config: UNetConfig, *, compiled: bool) -> float:
    """Count channels at the finest level: what the way up will need, and the layer at work."""
    finest = config.block_channels[0]
    layers = config.layers_per_block + 1
    skips = sum(layers * channels / 4.0**level for level, channels in enumerate(config.block_channels))
    return skips + finest * (7 if compiled else 16)


def _decoder_channels(config: AutoencoderConfig, compiled: bool) -> dict[str, float]:
    """Count channels at the picture's own resolution, by tiling."""
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
    """Count the numbers held while one picture passes the autoencoder."""
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


@contextmanager
def memory_errors(request: Request) -> Iterator[None]:
    """Turn torch's ways of saying that memory ran out into one error that says what to do: raises `OutOfMemory`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not is_of_memory(error):
            raise
        raise OutOfMemory(
            f"{request.width}×{request.height} pixels need more memory than there is: choose a smaller size"
        ) from error
