"""The memory modes: what of a model stays in its file (`lean`, `low`), and how large pictures pass the autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import torch
from torch import nn

from sfumato.engines.engine import Engine
from sfumato.engines.names import MEMORY_MODES
from sfumato.errors import InvalidRequest, OutOfMemory
from sfumato.nn.lazy_weights import bytes_held, bytes_widened, keep, widen
from sfumato.runtime import free_memory, gigabytes, logger, return_freed_memory

_TILING: Mapping[str, str] = {"auto": "auto", "lean": "exact", "low": "frugal"}
_SHARE = 0.6  # of free memory, for the weights in `auto`
_STREAM = frozenset({"winograd", "winograd-plain", "bf16", "eager"})
"""Engines that run layers whose weights are stored in another dtype, and have gone from memory meanwhile."""


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
    """Tell whether to read a model's warm parts: `shapes` are its weights', `engine` the name that was asked for.

    What is to be left in its file is smallest where it came from. `settle` does so in `auto` by what was loaded: the
    warm parts are no choice where they would have it done, since the model may fit as its own file stores it.
    """
    if memory != "auto":
        return False
    if device.type != "cpu" or engine not in _STREAM | {"auto"}:
        return True
    free = free_memory(device)
    return free is None or 4 * sum(map(prod, shapes)) <= _SHARE * free
