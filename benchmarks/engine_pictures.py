"""What an engine's roundings do to a picture: PSNR to eager after twenty guided steps of v1-4's shapes.

Random weights from a fixed seed; the UNet's last layer is scaled so that its answers have the variance of noise, as a
trained one's do, and every step counts. DDIM (Song et al. 2021, eq. 12, η = 0), guidance 7.5. Pictures are decoded by
the same engine, and scaled to eager's range. SFUMATO_BENCH_SIZE (512) is their side; names on the command line are
the engines, by default winograd and bf16. Needs 6 GB of memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.engines import SIDE, guided_inputs, networks
from sfumato.engines.engine import Engine
from sfumato.engines.registry import start
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.unet import UNet
from sfumato.models.unet_inputs import UNetInputs
from sfumato.pictures.pixels import psnr

STEPS, GUIDANCE = 20, 7.5


def picture(engine: Engine, latents: Tensor, context: Tensor) -> Tensor:
    """Sampled and decoded, (3, H, W)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    x = latents[:1]
    for i in range(STEPS):
        t = 1000 // STEPS * (STEPS - 1 - i) + 1
        now, then = kept[t].item(), kept[max(t - 1000 // STEPS, 0)].item()
        inputs = UNetInputs(latents=x, timesteps=torch.tensor([float(t)]), context=context)
        without, given = engine.unet(inputs).chunk(2)
        noise = without + GUIDANCE * (given - without)
        x0 = (x - (1 - now) ** 0.5 * noise) / now**0.5
        x = then**0.5 * x0 + (1 - then) ** 0.5 * noise
    return engine.decode(x / x.std())[0]


def compare(unet: UNet, autoencoder: Autoencoder, names: Sequence[str]) -> None:
    latents, times, context = guided_inputs()
    scale = unet(latents[:1], times[:1], context[:1]).std()
    unet.conv_out.weight.data /= scale
    unet.conv_out.bias.data /= scale
    expected = picture(start("eager", unet, autoencoder), latents, context)
    for name in names:
        engine = start(name, unet, autoencoder)
        likeness = psnr(
            picture(engine, latents, context).numpy(), expected.numpy(), span=float(np.ptp(expected.numpy()))
        )
        print(f"{engine.name}: {likeness:.1f} dB after {STEPS} steps at {8 * SIDE}×{8 * SIDE}")


def main(names: Sequence[str] = ()) -> None:
    with torch.inference_mode():
        _, _, unet, autoencoder = networks()
        compare(unet, autoencoder, names or ("winograd", "bf16"))


if __name__ == "__main__":
    main(sys.argv[1:])
