"""Pictures that pass the autoencoder in parts: exact strips against the whole, blended tiles against diffusers'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.engines import row_strips as strips
from sfumato.engines import tiling
from sfumato.engines.engine import Engine
from sfumato.engines.exact_autoencoder import ExactAutoencoder
from sfumato.engines.kernels import Kernels
from sfumato.engines.native_kernels import NativeKernels
from sfumato.engines.registry import start
from sfumato.engines.strip_autoencoder import StripAutoencoder
from sfumato.engines.tiling import tiling_of
from sfumato.engines.torch_kernels import TorchKernels
from sfumato.errors import InvalidRequest
from sfumato.models import autoencoder
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from support.in_memory import load
from support.tiny import AUTOENCODERS, diffusers_autoencoder

KERNELS = {"compiled": NativeKernels, "plain": TorchKernels}


def gaussian(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours.double() - reference.double()).norm() / reference.double().norm()).item()


def ours_of(reference: torch.nn.Module) -> Autoencoder:
    config = AutoencoderConfig.from_published(dict(reference.config))
    return load(Autoencoder, config, autoencoder.DIFFUSERS, reference.state_dict())


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    made: Kernels = KERNELS[request.param]()
    return made


@pytest.fixture(autouse=True)
def narrow_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small pictures have several."""
    monkeypatch.setattr(strips, "_PIXELS", 512)


@pytest.mark.parametrize("frugal", [False, True])
@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.inference_mode()
def test_strips_give_what_the_whole_gives(name: str, frugal: bool, kernels: Kernels) -> None:
    module = ours_of(diffusers_autoencoder(name))
    in_strips = StripAutoencoder(module, kernels, frugal=frugal)
    factor = module.config.factor
    latents, images = gaussian(2, module.config.latent_channels, 24, 17), gaussian(2, 3, 24 * factor, 17 * factor)
    assert len(list(strips.strips((24 * factor, 17 * factor)))) > 1
    assert relative(in_strips.decode(latents), module.decode(latents)) <= 1e-5
    found, reference = in_strips.encode(images), module.encode(images)
    assert relative(found.mean, reference.mean) <= 1e-5
    assert relative(found.logvar, reference.logvar) <= 1e-5


@torch.inference_mode()
def test_compiled_strips_change_no_bit() -> None:
    """Where strips begin on the kernels' tiles and the sums' runs, the same numbers are added in the same order."""
    module = ours_of(diffusers_autoencoder("v1-like"))
    latents = gaussian(1, 4, 16, 16)
    whole = ExactAutoencoder(module, NativeKernels()).decode(latents)
    for frugal in (False, True):
        assert torch.equal(StripAutoencoder(module, NativeKernels(), frugal=frugal).decode(latents), whole)


@pytest.mark.parametrize("rows", [36, 44, 64])
@torch.inference_mode()
def test_compiled_strips_of_an_encoder_differ_by_rounding(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels enough that a last strip of a few rows has fewer pixels than that, though the whole map has more."""
    monkeypatch.setattr(strips, "_PIXELS", 128)
    torch.manual_seed(0)
    module = Autoencoder(AutoencoderConfig(block_channels=(64, 64), layers_per_block=1, norm_groups=4)).eval()
    images = gaussian(1, 3, rows, 16)
    assert len(list(strips.strips((rows, 16)))) > 1
    whole = ExactAutoencoder(module, NativeKernels()).encode(images)
    for frugal in (False, True):
        ours = StripAutoencoder(module, NativeKernels(), frugal=frugal).encode(images)
        torch.testing.assert_close(ours.mean, whole.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.logvar, whole.logvar, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_strange_first_pixel_does_not_spoil_the_sums(kernels: Kernels) -> None:
    """Sums are shifted by the first pixel; one far from the others, or a large mean, costs few digits."""
    norm = torch.nn.GroupNorm(4, 16)
    x = gaussian(1, 32, 24, 16) + 20
    x[0, 0, 0] = -10
    sums = kernels.add_sums(x[:, 8:].contiguous(), kernels.add_sums(x[:, :8].contiguous()))
    affine = kernels.affine(sums, norm)
    expected = norm.double()(x.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert relative(x * affine.scale[:, None, None] + affine.shift[:, None, None], expected) <= 2e-5


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize("cells", [(48, 33), (16, 40), (70, 16)], ids=str)
@torch.no_grad()
def test_blended_tiles_are_diffusers(name: str, cells: tuple[int, int]) -> None:
    """The same tiles, overlaps and weights as `enable_vae_tiling`, in both directions."""
    reference = diffusers_autoencoder(name)
    reference.enable_tiling()
    module = ours_of(reference)
    engine = _engine(module, "blend")
    height, width = (max(side // module.config.factor, 1) * module.config.factor for side in (4 * c for c in cells))
    images = gaussian(1, 3, height, width)
    latents = gaussian(1, module.config.latent_channels, height // module.config.factor, width // module.config.factor)
    assert relative(engine.decode(latents), reference.decode(latents).sample) <= 1e-5
    theirs = reference.encode(images).latent_dist
    assert relative(engine.encode(images).mean, theirs.mean) <= 1e-5
    assert relative(engine.encode(images).logvar, theirs.logvar) <= 1e-5
    assert relative(engine.decode(latents), module.decode(latents)) > 1e-3  # not what the whole gives


@torch.inference_mode()
def test_every_tiling_runs_from_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ours_of(diffusers_autoencoder("pocket-like"))
    latents, images = gaussian(1, 4, 24, 24), gaussian(1, 3, 96, 96)
    for name in ("none", "exact", "frugal", "auto"):
        engine = _engine(module, name)
        assert engine.tiling == name
        assert relative(engine.decode(latents), module.decode(latents)) <= 1e-5
        assert relative(engine.encode(images).mean, module.encode(images).mean) <= 1e-5
    with pytest.raises(InvalidRequest, match="vae_tiling 'exakt' is unknown: use auto, none, exact, frugal, blend"):
        _engine(module, "exakt")


def test_auto_goes_by_the_pictures_size_alone() -> None:
    config = AutoencoderConfig()
    for side, expected in ((512, "none"), (768, "none"), (776, "exact"), (1536, "exact"), (2048, "frugal")):
        assert tiling_of("auto", side, side, config) == expected
    assert tiling_of("blend", 512, 512, config) == "none"
    assert tiling_of("blend", 512, 520, config) == "blend"
    assert tiling._WHOLE >= 512 * 512  # pictures of v1's own size stay what they were


def _engine(module: Autoencoder, tiling: str) -> Engine:
    config = UNetConfig(block_channels=(32,), attention=(True,), heads=(2,), depth=(1,), context_dim=8)
    return start("eager", UNet(config), module, tiling=tiling)
