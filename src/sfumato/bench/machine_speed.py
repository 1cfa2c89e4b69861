"""What the machine can do, measured and counted in a process of its own: products a second, operations of a step."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sfumato.bench.bench_plan import Plan
from sfumato.modelfiles.open_model import open_model
from sfumato.runtime import processor_name, resolve_device

# Large enough to reach the peak, small enough to take a blink.
_SIDES = {"cpu": 2048, "cuda": 8192, "mps": 4096}
_TRIES = 5


class Machine:
    """What one device can do. `gemm` is repeated between turns: processors don't always run at the same clock."""

    def __init__(self, plan: Plan) -> None:
        self._device = resolve_device(plan.device)

    def gemm(self, dtype: str) -> float:
        """The best of a few square matrix products, in GFLOP/s."""
        side, kind = _SIDES[self._device.type], getattr(torch, dtype)
        a, b = (torch.ones(side, side, dtype=kind, device=self._device) for _ in range(2))
        best = 0.0
        for _ in range(_TRIES):
            self._wait()
            began = time.perf_counter()
            torch.mm(a, b)
            self._wait()
            best = max(best, 2 * side**3 / (time.perf_counter() - began) / 1e9)
        return best

    def facts(self) -> dict[str, object]:
        """What ran the benchmark, for its record."""
        return {
            "processor": processor_name(self._device),
            "device": str(self._device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def operations(model: Path, plan: Plan) -> dict[str, int]:
    """Floating-point operations of one guided step and of one decode, by the shapes of the plain networks.

    Counted by torch on its `meta` device: two for each multiply-add of convolutions, products and attention. An
    engine that needs fewer for the same answer is counted with these all the same.
    """
    with open_model(model) as files:
        unet, vae = files.unet.module, files.vae.module
        side = (plan.size or unet.config.sample_size * vae.config.factor) // vae.config.factor
        channels = vae.config.latent_channels
        with torch.device("meta"), torch.inference_mode():
            pair = 2 * plan.batch
            latents = torch.empty(pair, unet.config.in_channels, side, side)
            with FlopCounterMode(display=False) as step:
                unet(latents, torch.empty(pair), torch.empty(pair, 77, unet.config.context_dim))
            with FlopCounterMode(display=False) as decode:
                vae.decode(torch.empty(plan.batch, channels, side, side))
    return {"step": int(step.get_total_flops()), "decode": int(decode.get_total_flops())}
