"""The engines' names, for help and checks that must not load torch."""

from __future__ import annotations

from collections.abc import Mapping

ENGINES: Mapping[str, str] = {
    "auto": "winograd for large models on a CPU, else eager",
    "eager": "the networks as they are written, in PyTorch's own operations",
    "winograd": "exact and fastest on a CPU: compiled kernels, Winograd convolutions",
    "winograd-plain": "the same without a compiler, slower",
    "openvino": "OpenVINO in float32, converted once for each size (extra openvino)",
}
