"""The engines' names, for help and checks that must not load torch."""

from __future__ import annotations

from collections.abc import Mapping

ENGINES: Mapping[str, str] = {
    "auto": "winograd for large models on a CPU, graph on CUDA, else eager",
    "eager": "the networks as they are written, in PyTorch's own operations",
    "winograd": "exact and fastest on a CPU: compiled kernels, Winograd convolutions",
    "winograd-plain": "its algebra in plain PyTorch, to compare with: slower than eager where it was measured",
    "bf16": "approximate, twice as fast: products in bfloat16 on processors that have them (avx512_bf16)",
    "compile": "torch.compile, block by block; the first picture of a size waits for it",
    "graph": "CUDA only: the networks as they are written, each forward in one launch",
    "openvino": "OpenVINO in float32, converted once for each size (extra openvino)",
}

TILINGS: Mapping[str, str] = {
    "auto": "by a picture's pixels: none up to 768 × 768, exact up to 1536 × 1536, then frugal",
    "none": "pictures pass the autoencoder whole",
    "exact": "in strips of rows: the same picture within rounding, in less memory",
    "frugal": "in strips too, with the largest maps computed twice: least memory of the exact ones, a third slower",
    "blend": "in overlapping tiles, as diffusers: another picture, in memory that hardly grows with it",
}

MEMORY_MODES: Mapping[str, str] = {
    "auto": "fastest: weights stay in memory, large pictures pass the autoencoder in strips",
    "lean": "weights stay in their file, a layer at a time in memory; the same pictures, nearly as fast",
    "low": "as lean, with everything else as small as it gets; slower",
}
