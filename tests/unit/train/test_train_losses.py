"""Losses and weights against the papers' formulas, written out here in another way."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.train.losses.edges import edge_l1
from sfumato.train.losses.kl import kl_to_unit_gaussian
from sfumato.train.losses.lpips import Lpips, load_lpips
from sfumato.train.losses.patchgan import (
    PatchDiscriminator,
    adaptive_weight,
    frozen_logits,
    hinge_discriminator,
)
from sfumato.train.optim.ema import Ema


def random_pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def test_kl_is_torchs_own_between_the_two_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64)
    logvar = torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64) * 3.0
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, unit)
    torch.testing.assert_close(kl_to_unit_gaussian(mean, logvar), expected)


def test_edge_l1_is_the_mean_difference_of_neighbours_at_each_octave() -> None:
    output, target = random_pictures(2, 3, 8, 8), random_pictures(2, 3, 8, 8, seed=1)
    difference = (output - target).numpy().astype(np.float64)
    expected = 0.0
    for _ in range(3):
        height, width = difference.shape[2:]
        across = [abs(difference[..., x + 1] - difference[..., x]).mean() for x in range(width - 1)]
        down = [abs(difference[..., y + 1, :] - difference[..., y, :]).mean() for y in range(height - 1)]
        expected += (sum(across) / len(across) + sum(down) / len(down)) / 3
        difference = difference.reshape(2, 3, height // 2, 2, width // 2, 2).mean(axis=(3, 5))
    assert float(edge_l1(output, target, 3)) == pytest.approx(expected, rel=1e-5)


def torchvision_vgg16() -> nn.Sequential:
    """`torchvision.models.vgg16().features`, from its configuration "D"."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if entry == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, int(entry), 3, padding=1), nn.ReLU()]
            channels = int(entry)
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Sequential, list[Tensor]]:
    folder = tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    vgg = torchvision_vgg16()
    with torch.no_grad():
        for parameter in vgg.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * math.sqrt(2.0 / fan))
    heads = [torch.rand(1, width, 1, 1, generator=generator) for width in (64, 128, 256, 512, 512)]
    save_file({f"features.{name}": tensor for name, tensor in vgg.state_dict().items()}, folder / "vgg.safetensors")
    torch.save({f"lin{i}.model.1.weight": head for i, head in enumerate(heads)}, folder / "heads.pth")
    return folder / "vgg.safetensors", folder / "heads.pth", vgg, heads


def test_lpips_is_the_papers_distance(vgg_files: tuple[Path, Path, nn.Sequential, list[Tensor]]) -> None:
    vgg_path, heads_path, vgg, heads = vgg_files
    pictures = [random_pictures(2, 3, 32, 32, seed=seed) for seed in (1, 2)]
    activations: list[list[Tensor]] = []
    for batch in pictures:
        x = (batch - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        kept = []
        for i, layer in enumerate(vgg):
            x = layer(x)
            if i in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
                kept.append(F.normalize(x, dim=1))
        activations.append(kept)
    expected = torch.stack(
        [F.conv2d((a - b) ** 2, head).mean(dim=(1, 2, 3)) for a, b, head in zip(*activations, heads, strict=True)]
    ).sum(0)
    torch.testing.assert_close(load_lpips(vgg_path, heads_path)(*pictures), expected.detach(), rtol=1e-4, atol=1e-6)


def test_lpips_has_a_gradient_for_the_picture_and_none_for_itself(
    vgg_files: tuple[Path, Path, nn.Sequential, list[Tensor]],
) -> None:
    lpips = load_lpips(*vgg_files[:2])
    output = random_pictures(1, 3, 16, 16).requires_grad_()
    lpips(output, random_pictures(1, 3, 16, 16, seed=1)).sum().backward()
    assert output.grad is not None
    assert float(output.grad.abs().sum()) > 0.0
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_another_network_than_lpips_vgg_is_refused(
    tmp_path: Path, vgg_files: tuple[Path, Path, nn.Sequential, list[Tensor]]
) -> None:
    save_file({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"features\.0\.weight"):
        load_lpips(tmp_path / "other.safetensors", vgg_files[1])
    assert len(Lpips().convolutions) == 13


def test_the_critic_is_the_published_patchgan() -> None:
    """Layers and sizes of pix2pix' NLayerDiscriminator with 3 layers and 64 channels, which judges 70-pixel patches."""
    critic = PatchDiscriminator()
    kinds = [type(layer).__name__ for layer in critic.blocks]
    norm = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == ["Conv2d", "LeakyReLU", *norm * 3, "Conv2d"]
    weights = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(parameter.numel() for parameter in critic.parameters()) == weights
    convolutions = [layer for layer in critic.blocks if isinstance(layer, nn.Conv2d)]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    field = 1
    for layer in reversed(convolutions):
        field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
    assert field == 70
    assert critic(random_pictures(2, 3, 64, 64)).shape == (2, 1, 6, 6)


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.5])
    expected = 0.5 * ((0.0 + 0.5 + 2.0) / 3 + (0.0 + 1.0 + 2.5) / 3)
    assert float(hinge_discriminator(real, fake)) == pytest.approx(expected)


def test_the_picture_learns_from_the_critic_and_the_critic_not_from_it() -> None:
    critic = PatchDiscriminator(channels=4)
    picture = random_pictures(2, 3, 32, 32).requires_grad_()
    frozen_logits(critic, picture).mean().backward()
    assert picture.grad is not None
    assert float(picture.grad.abs().sum()) > 0.0
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    x = torch.tensor([3.0, -1.0])
    first, second = (last * x).sum() ** 2, 0.5 * (last * x).sum()
    # ∇first = 2 (last·x) x = 2x, ∇second = x / 2
    weight = adaptive_weight(first, second, last)
    assert float(weight) == pytest.approx(2.0 * math.sqrt(10.0) / (0.5 * math.sqrt(10.0) + 1e-4))
    assert not weight.requires_grad
    assert float(adaptive_weight(first, 1e-12 * second, last)) == pytest.approx(1e4)


def test_ema_follows_the_formula_with_its_warm_up() -> None:
    module = nn.Linear(2, 2)
    ema = Ema(module, 0.9)
    expected = copy.deepcopy(module.state_dict())
    generator = torch.Generator().manual_seed(0)
    for n in range(1, 120):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ema.update(module, n)
        decay = min(0.9, (1 + n) / (10 + n))
        for name, tensor in module.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    for name, tensor in ema.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
