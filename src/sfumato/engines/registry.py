"""The engines by name, and the fixed table by which `auto` chooses one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from sfumato.engines.engine import Engine, called_as_written, eager
from sfumato.engines.fused import why_not as why_not_fused
from sfumato.engines.names import ENGINES
from sfumato.engines.native_build import NoKernelsError, why_not
from sfumato.engines.tiling import tiled
from sfumato.errors import InvalidRequest
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.unet import UNet
from sfumato.models.unet_inputs import UNetInputs
from sfumato.nn.lazy_weights import widen
from sfumato.runtime import is_nvidia

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("sfumato")

# Narrower UNets are done in a blink, and stay byte for byte what they were.
_WIDE = 256


class _CannotError(Exception):
    """An engine can't run this model here; the message says why, in words that follow "engine X:"."""


def start(name: str, unet: UNet, autoencoder: Autoencoder, *, tiling: str = "auto", memory: str = "auto") -> Engine:
    """Start the engine of that name for a model's modules. One that can't run them here says why in one line, and
    `eager` runs.

    `tiling` is one of `names.TILINGS`, `memory` of `names.MEMORY_MODES`. Raises `InvalidRequest` for a name that is no
    engine or no tiling, `MissingExtra` for an engine whose packages aren't installed.
    """
    if name not in ENGINES:
        raise InvalidRequest(f"engine {name!r} is unknown: use {', '.join(ENGINES)}", field="engine")
    if name == "auto":
        name = choose(unet, memory=memory)
    try:
        engine = _STARTERS[name](unet, autoencoder)
    except _CannotError as reason:
        logger.warning("engine %s: %s; the engine eager runs instead", name, reason)
        engine = eager(unet, autoencoder)
    return tiled(engine, autoencoder, tiling)


def choose(unet: UNet, *, memory: str = "auto") -> str:
    """What `auto` is for this model here: by its device, dtype and width, by what the processor has and the memory
    mode, never by a timing, so that a picture doesn't depend on how busy the machine was."""
    bias = unet.conv_in.bias
    assert bias is not None
    if is_nvidia(bias.device):
        # A captured graph keeps the memory of its forward, and without Triton it was never measured.
        return "graph" if memory == "auto" and not why_not_fused(bias.device.type) else "eager"
    wide = max(unet.config.block_channels) >= _WIDE
    return "winograd" if wide and not _unfit(unet) and not why_not() else "eager"


def _unfit(unet: UNet) -> str:
    """Why the engines for float32 on a CPU can't run a model, "" where it can."""
    bias = unet.conv_in.bias  # has the dtype to compute in; weights may be as their file stores them
    assert bias is not None
    if bias.device.type != "cpu":
        return f"it is for the CPU, the model is on {bias.device.type}"
    if str(bias.dtype) != "torch.float32":
        return f"it computes in float32, the model is {str(bias.dtype).removeprefix('torch.')}"
    return ""


def _winograd(unet: UNet, autoencoder: Autoencoder) -> Engine:
    try:
        return _compiled_kernels("winograd", unet, autoencoder, pairs=False)
    except NoKernelsError as reason:  # winograd-plain would do without them, and is slower than eager
        raise _CannotError(str(reason)) from reason


def _bf16(unet: UNet, autoencoder: Autoencoder) -> Engine:
    try:
        return _compiled_kernels("bf16", unet, autoencoder, pairs=True)
    except NoKernelsError as reason:
        engine = _winograd(unet, autoencoder)
        logger.warning("engine bf16: %s; the exact winograd runs instead", reason)
        return engine


def _compiled_kernels(name: str, unet: UNet, autoencoder: Autoencoder, *, pairs: bool) -> Engine:
    """Both networks on the C++ kernels, whose products are of `pairs` of bfloat16 or of float32."""
    from sfumato.engines.exact_autoencoder import ExactAutoencoder
    from sfumato.engines.exact_unet import ExactUNet
    from sfumato.engines.native_kernels import NativeKernels

    if reason := _unfit(unet):
        raise _CannotError(reason)
    kernels = NativeKernels(pairs=pairs)
    network, pictures = ExactUNet(unet, kernels), ExactAutoencoder(autoencoder, kernels)
    return Engine(
        name=name, unet=network, encode=pictures.encode, decode=pictures.decode, shortens=True, kernels=kernels
    )


def _winograd_plain(unet: UNet, autoencoder: Autoencoder) -> Engine:
    from sfumato.engines.exact_unet import ExactUNet
    from sfumato.engines.torch_kernels import TorchKernels

    if reason := _unfit(unet):
        raise _CannotError(reason)
    # The autoencoder's large maps of few channels gain nothing from batched products.
    return Engine(
        name="winograd-plain",
        unet=ExactUNet(unet, TorchKernels()),
        encode=autoencoder.encode,
        decode=autoencoder.decode,
        shortens=True,
    )


def _compile(unet: UNet, autoencoder: Autoencoder) -> Engine:
    from sfumato.engines.torch_compile import compiled_copy
    from sfumato.engines.torch_compile import why_not as why_not_compile

    device = unet.conv_in.weight.device.type
    if reason := why_not_compile(device):
        raise _CannotError(reason)
    for network in (unet, autoencoder):
        widen(network)  # where a weight lies in its file is no question for compiled code
    if device == "cuda":
        # The graph is ours, of the whole forward: "reduce-overhead" would capture one a block. "max-autotune" times a
        # dozen kernels for each product of each shape, which is minutes before v1's first picture.
        return _graphed("compile", compiled_copy(unet), compiled_copy(autoencoder))
    answers, pictures = called_as_written(compiled_copy(unet)), compiled_copy(autoencoder)
    return Engine(name="compile", unet=answers, encode=pictures.encode, decode=pictures.decode)


def _graph(unet: UNet, autoencoder: Autoencoder) -> Engine:
    from sfumato.engines.fused import fused_copy
    from sfumato.engines.projected import project, projected_copy

    device = unet.conv_in.weight.device.type
    if device != "cuda":
        raise _CannotError(f"it is for CUDA devices, the model is on {device}")
    network, pictures = unet, autoencoder
    if reason := why_not_fused(device):
        logger.warning("engine graph: %s; torch's own GroupNorm runs instead, slower", reason)
    else:
        network, pictures = fused_copy(unet), fused_copy(autoencoder)
    return _graphed("graph", projected_copy(network), pictures, partial(project, unet), called_as_written(network))


def _graphed(
    name: str,
    unet: UNet,
    autoencoder: Autoencoder,
    prepare: Callable[[Tensor], Tensor] | None = None,
    shortened: Callable[[UNetInputs], Tensor] | None = None,
) -> Engine:
    """The engine on CUDA: channels last, as its convolutions are fastest, and a guided forward or a decode in one
    launch.

    `prepare` makes what the UNet takes for a context, where it takes another thing; `shortened` answers with shortcuts.
    """
    import torch

    from sfumato.engines.graphs import GraphCache, Graphed, GraphedUNet, as_it_is

    weights = (*unet.parameters(), *autoencoder.parameters())
    for weight in weights:
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    bias = unet.conv_in.bias
    assert bias is not None
    cache = GraphCache(weights)
    return Engine(
        name=name,
        unet=GraphedUNet(unet, bias.dtype, prepare=prepare or as_it_is, shortened=shortened, cache=cache),
        encode=autoencoder.encode,
        decode=Graphed(autoencoder.decode, cache=cache),
        guides=True,
        shortens=shortened is not None,
    )


def _openvino(unet: UNet, autoencoder: Autoencoder) -> Engine:
    from sfumato.engines.openvino import OpenVinoAutoencoder, OpenVinoUNet

    if reason := _unfit(unet):
        raise _CannotError(reason)
    pictures = OpenVinoAutoencoder(autoencoder)
    return Engine(name="openvino", unet=OpenVinoUNet(unet), encode=pictures.encode, decode=pictures.decode)


_STARTERS: Mapping[str, Callable[[UNet, Autoencoder], Engine]] = {
    "eager": eager,
    "winograd": _winograd,
    "winograd-plain": _winograd_plain,
    "bf16": _bf16,
    "compile": _compile,
    "graph": _graph,
    "openvino": _openvino,
}
