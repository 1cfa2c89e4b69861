"""Each engine against the modules it runs: diffusers' random weights, same inputs, same answers within rounding."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sfumato import load_pipeline
from sfumato.engines import native_build as compiler
from sfumato.engines import registry
from sfumato.engines import torch_compile as compiled
from sfumato.engines.exact_autoencoder import ExactAutoencoder
from sfumato.engines.exact_unet import ExactUNet, strided
from sfumato.engines.kernels import Kernels
from sfumato.engines.names import ENGINES
from sfumato.engines.native_kernels import NativeKernels
from sfumato.engines.registry import choose, start
from sfumato.engines.torch_kernels import TorchKernels
from sfumato.errors import InvalidRequest, MissingExtra
from sfumato.models import autoencoder, unet
from sfumato.models.unet_config import UNetConfig
from sfumato.user_cache import cache_folder
from support.engine_networks import ask, gaussian, relative, tiny_autoencoder, tiny_unet
from support.tiny import AUTOENCODERS, UNETS

KERNELS: dict[str, Callable[[], Kernels]] = {
    "compiled": NativeKernels,
    "compiled for AVX2": lambda: NativeKernels(instructions="avx2"),
    "plain": TorchKernels,
}
SIZES = ((16, 24), (9, 16), (3, 5), (2, 3))


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return KERNELS[request.param]()


@pytest.mark.parametrize("name", UNETS)
@torch.inference_mode()
def test_exact_unet_matches_eager(name: str, kernels: Kernels) -> None:
    module = tiny_unet(name)
    exact = ExactUNet(module, kernels)
    context = gaussian(2, 7, module.config.context_dim, seed=2)
    for t in (torch.tensor([981.0, 981.0]), torch.tensor([981.0, 12.5])):
        pair = gaussian(1, module.config.in_channels, 16, 24).repeat(2, 1, 1, 1)
        two = gaussian(2, module.config.in_channels, 16, 24)
        for x in (pair, two):
            assert relative(ask(exact, x, t, context), module(x, t, context)) <= 2e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.inference_mode()
def test_exact_unet_takes_sizes_that_do_not_halve(size: tuple[int, int], kernels: Kernels) -> None:
    module = tiny_unet("v1-like")
    x, context, t = gaussian(1, 4, *size), gaussian(1, 7, 24, seed=2), torch.tensor([500.0])
    assert relative(ask(ExactUNet(module, kernels), x, t, context), module(x, t, context)) <= 5e-5


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.inference_mode()
def test_exact_autoencoder_matches_eager(name: str, kernels: Kernels) -> None:
    module = tiny_autoencoder(name)
    exact = ExactAutoencoder(module, kernels)
    images = gaussian(2, 3, 32, 48)
    ours, reference = exact.encode(images), module.encode(images)
    assert relative(ours.mean, reference.mean) <= 2e-5
    assert relative(ours.logvar, reference.logvar) <= 2e-5
    latents = gaussian(2, module.config.latent_channels, 5, 6)
    assert relative(exact.decode(latents), module.decode(latents)) <= 2e-5


@torch.inference_mode()
def test_what_is_kept_belongs_to_its_context_and_time(kernels: Kernels) -> None:
    """Any order of prompts and times gives what each gives by itself."""
    module = tiny_unet("v1-like")
    kept = ExactUNet(module, kernels)
    x = gaussian(2, 4, 8, 8)
    for seed, t in ((1, 3.0), (2, 3.0), (1, 7.0), (3, 3.0), (4, 3.0), (5, 3.0), (6, 3.0), (1, 3.0)):
        context, times = gaussian(2, 7, 24, seed=seed), torch.full((2,), t)
        assert torch.equal(ask(kept, x, times, context), ask(ExactUNet(module, kernels), x, times, context))


@torch.inference_mode()
def test_weights_are_read_where_they_are(kernels: Kernels) -> None:
    module = tiny_unet("v1-like")
    exact = ExactUNet(module, kernels)
    x, t, context = gaussian(2, 4, 8, 8), torch.full((2,), 5.0), gaussian(2, 7, 24)
    ask(exact, x, t, context)
    for parameter in module.parameters():
        parameter.mul_(1.1)
    exact.forget()
    assert relative(ask(exact, x, t, context), module(x, t, context)) <= 2e-5


@pytest.mark.parametrize(
    "shape", [(1, 5, 7, 3, 4), (2, 8, 8, 36, 70), (1, 33, 20, 340, 33), (3, 4, 4, 16, 32)], ids=str
)
@pytest.mark.parametrize("enlarged", [False, True])
@torch.inference_mode()
def test_convolutions_match_pytorch_in_double(
    shape: tuple[int, int, int, int, int], enlarged: bool, kernels: Kernels
) -> None:
    """GroupNorm, SiLU, the channel's and the map's additions and the convolution, against float64."""
    batch, height, width, channels, outputs = shape
    x = gaussian(batch, height, width, channels)
    conv, norm = nn.Conv2d(channels, outputs, 3, padding=1), nn.GroupNorm(1, channels)
    factor = 2 if enlarged else 1
    channel, residual = gaussian(batch, outputs), gaussian(batch, height * factor, width * factor, outputs)
    ours = kernels.conv3x3(
        x, conv, norm=kernels.group_norm(x, norm), channel=channel, residual=residual, enlarged=enlarged
    )
    h = nn.functional.silu(norm.double()(x.permute(0, 3, 1, 2).double()))
    if enlarged:
        h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
    expected = conv.double()(h) + channel[:, :, None, None] + residual.permute(0, 3, 1, 2)
    assert relative(ours, expected.permute(0, 2, 3, 1)) <= 1e-5


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(7, 9), (8, 8), (25, 31)], ids=str)
@torch.inference_mode()
def test_strided_convolutions_match_pytorch_in_double(
    size: tuple[int, int], padding: int, batch: int, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a product of patches on the small maps, however many there are, and as PyTorch's own on the large."""
    products: list[torch.Size] = []
    linear = kernels.linear

    def noting(x: torch.Tensor, layer: nn.Linear | nn.Conv2d) -> torch.Tensor:
        products.append(x.shape)
        return linear(x, layer)

    monkeypatch.setattr(kernels, "linear", noting)
    x, conv = gaussian(batch, *size, 12), nn.Conv2d(12, 100, 3, stride=2, padding=padding)
    ours = strided(kernels, x, conv)
    assert len(products) == (size != (25, 31))
    expected = nn.functional.conv2d(
        x.permute(0, 3, 1, 2).double(), conv.weight.double(), conv.bias.double(), stride=2, padding=padding
    )
    assert relative(ours, expected.permute(0, 2, 3, 1)) <= 2e-6


@pytest.mark.parametrize("sizes", [(1, 1, 8), (37, 50, 70), (130, 700, 48)], ids=str)
@torch.inference_mode()
def test_products_match_pytorch_in_double(sizes: tuple[int, int, int], kernels: Kernels) -> None:
    count, width, outputs = sizes
    x = gaussian(1, count, width) * 3 + 1
    layer, norm = nn.Linear(width, outputs), nn.LayerNorm(width)
    ours = kernels.linear(x, layer, norm=kernels.layer_norm(x, norm), gated=True)
    value, gate = layer.double()(norm.double()(x.double())).chunk(2, dim=-1)
    assert relative(ours, value * nn.functional.gelu(gate)) <= 2e-6
    layer, residual = nn.Linear(width, outputs, bias=False), gaussian(1, count, outputs)
    ours = kernels.linear(x, layer, residual=residual)
    assert relative(ours, layer.double()(x.double()) + residual) <= 2e-6


@pytest.mark.parametrize("sizes", [(1, 1, 1, 8), (3, 50, 33, 20), (2, 200, 700, 40), (2, 30, 77, 24)], ids=str)
@torch.inference_mode()
def test_attention_matches_the_formula_in_double(sizes: tuple[int, int, int, int], kernels: Kernels) -> None:
    heads, n, m, width = sizes
    q, k, v = (gaussian(2, rows, heads * width, seed=i) * 4 for i, rows in enumerate((n, m, m)))
    split = (x.double().view(2, -1, heads, width).transpose(1, 2) for x in (q, k, v))
    queries, keys, values = split
    weights = torch.softmax(queries @ keys.transpose(2, 3) / width**0.5, dim=-1)
    expected = (weights @ values).transpose(1, 2).reshape(2, n, -1)
    assert relative(kernels.attention(q, k, v, heads), expected) <= 5e-6


@pytest.mark.parametrize("name", ["winograd", "bf16"])
def test_without_a_compiler_eager_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SFUMATO_NO_KERNELS", "1")
    compiler.kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="sfumato"):
            engine = start(name, tiny_unet("v1-like"), tiny_autoencoder(next(iter(AUTOENCODERS))))
        assert engine.name == "eager"
        (record,) = caplog.records
        assert record.getMessage().startswith(f"engine {name}: ")
        assert "SFUMATO_NO_KERNELS is set" in record.getMessage()
    finally:
        compiler.kernels.cache_clear()


def test_a_compiler_that_fails_is_a_reason_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "COMPILERS", ("false",))
    compiler.kernels.cache_clear()
    try:
        assert "can't compile the kernels" in compiler.why_not()
        assert list(cache_folder().iterdir()) == []
    finally:
        compiler.kernels.cache_clear()


def test_instructions_that_are_none_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_INSTRUCTIONS", "sse9")
    compiler.kernels.cache_clear()
    try:
        assert compiler.why_not() == "SFUMATO_INSTRUCTIONS is 'sse9': use native or avx2"
    finally:
        compiler.kernels.cache_clear()


def test_half_precision_runs_eagerly_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    module, pictures = tiny_unet("v1-like").bfloat16(), tiny_autoencoder(next(iter(AUTOENCODERS))).bfloat16()
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert start("winograd", module, pictures).name == "eager"
    assert "bfloat16; the engine eager runs instead" in caplog.text


def test_graph_is_for_gpus_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        assert start("graph", tiny_unet("v1-like"), tiny_autoencoder("v1-like")).name == "eager"
    assert "it is for CUDA devices, the model is on cpu; the engine eager runs instead" in caplog.text


def test_auto_is_eager_for_small_models_and_winograd_for_wide_ones() -> None:
    assert choose(tiny_unet("v1-like")) == "eager"
    with torch.device("cpu"):
        wide = unet.UNet(
            UNetConfig(block_channels=(32, 256), attention=(False, False), heads=(4, 4), depth=(1, 1), context_dim=8)
        )
    assert choose(wide) == "winograd"


@pytest.mark.parametrize(
    ("device", "rocm", "without", "memory", "expected"),
    [
        ("cuda", None, "", "auto", "graph"),
        ("cuda:1", None, "", "auto", "graph"),
        ("cuda", None, "", "lean", "eager"),
        ("cuda", None, "", "low", "eager"),
        ("cuda", None, "the package triton isn't installed", "auto", "eager"),
        ("cuda", "6.4", "", "auto", "eager"),
        ("mps", None, "", "auto", "eager"),
    ],
)
def test_auto_is_graph_on_nvidia_where_triton_works_and_memory_is_not_short(
    device: str, rocm: str | None, without: str, memory: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", rocm)
    monkeypatch.setattr(registry, "why_not_fused", lambda kind: without)
    bias = SimpleNamespace(device=torch.device(device), dtype=torch.float16)
    there: Any = SimpleNamespace(
        config=SimpleNamespace(block_channels=(320, 640)), conv_in=SimpleNamespace(bias=bias)
    )  # a network nobody can make here
    assert choose(there, memory=memory) == expected


@torch.inference_mode()
def test_blocks_are_traced_whole_at_any_size_and_the_model_is_left_alone() -> None:
    """Without the compiler itself, which takes long: its input is what is told apart here. The weights are shared."""
    module = tiny_unet("pocket-like")
    copied = compiled.compiled_copy(module, backend="eager")
    context, t = gaussian(2, 7, 20, seed=2), torch.tensor([981.0, 12.5])
    for size in ((8, 12), (5, 8)):
        x = gaussian(2, 4, *size)
        assert relative(copied(x, t, context), module(x, t, context)) <= 2e-5
    assert any(block._compiled_call_impl for block in copied.modules())
    assert not any(block._compiled_call_impl for block in module.modules())
    before = copied(x, t, context)
    for parameter in module.parameters():
        parameter.mul_(1.1)
    assert relative(copied(x, t, context), module(x, t, context)) <= 2e-5
    assert not torch.equal(copied(x, t, context), before)


@torch.inference_mode()
def test_compile_matches_eager() -> None:
    """Compiled for real, a network whose blocks are of one kind each."""
    config = autoencoder.AutoencoderConfig(
        block_channels=(8,), layers_per_block=1, latent_channels=2, norm_groups=4, sample_size=8
    )
    torch.manual_seed(0)
    pictures = autoencoder.Autoencoder(config)
    engine = start("compile", tiny_unet("v1-like"), pictures)
    assert engine.name == "compile"
    latents = gaussian(1, 2, 4, 6)
    assert relative(engine.decode(latents), pictures.decode(latents)) <= 2e-5


def test_compile_without_a_compiler_runs_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    compiled.why_not.cache_clear()
    torch.compiler.reset()
    try:
        with caplog.at_level(logging.WARNING, logger="sfumato"):
            engine = start("compile", tiny_unet("v1-like"), tiny_autoencoder(next(iter(AUTOENCODERS))))
        assert engine.name == "eager"
        assert "it needs a C++ compiler" in caplog.text
    finally:
        compiled.why_not.cache_clear()


def test_unknown_engines_are_refused_with_all_names() -> None:
    with pytest.raises(InvalidRequest, match=", ".join(ENGINES)):
        start("fastest", tiny_unet("v1-like"), tiny_autoencoder(next(iter(AUTOENCODERS))))


@pytest.mark.parametrize("size", [(16, 24), (9, 16)], ids=str)
@torch.inference_mode()
def test_openvino_matches_eager_and_is_converted_once(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module, pictures = tiny_unet("v1-like"), tiny_autoencoder(next(iter(AUTOENCODERS)))
    x, context, t = gaussian(2, 4, *size), gaussian(2, 7, 24, seed=2), torch.tensor([981.0, 12.5])
    engine = start("openvino", module, pictures)
    assert relative(ask(engine.unet, x, t, context), module(x, t, context)) <= 2e-5
    kept = sorted(path for path in cache_folder().rglob("*") if path.is_file())
    again = start("openvino", module, pictures)
    assert torch.equal(ask(again.unet, x, t, context), ask(engine.unet, x, t, context))
    assert sorted(path for path in cache_folder().rglob("*") if path.is_file()) == kept
    images = gaussian(1, 3, 32, 48)
    assert relative(engine.encode(images).mean, pictures.encode(images).mean) <= 2e-5
    latents = gaussian(1, pictures.config.latent_channels, 4, 6)
    assert relative(engine.decode(latents), pictures.decode(latents)) <= 2e-5


def test_openvino_that_isnt_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[openvino\]"):
        start("openvino", tiny_unet("v1-like"), tiny_autoencoder(next(iter(AUTOENCODERS))))


def test_compile_takes_a_model_whose_weights_lie_in_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as `eager`, whose layers widen them; what is compiled is traced only, as above."""
    monkeypatch.setattr(compiled, "why_not", lambda device: "")
    monkeypatch.setattr(compiled, "compiled_copy", partial(compiled.compiled_copy, backend="eager"))
    answers = []
    for engine in ("eager", "compile"):
        model = load_pipeline("pocket", device="cpu", dtype="float32", engine=engine).model
        assert model.engine.name == engine
        with torch.inference_mode():
            answers.append(model.engine.decode(gaussian(1, model.autoencoder.config.latent_channels, 4, 4)))
    assert relative(answers[1], answers[0]) <= 2e-5
