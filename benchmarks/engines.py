"""One guided step of a v1-4-size UNet and one decode at 512×512: our engines beside diffusers and OpenVINO.

Random weights, shared by all. Contestants take turns (A B C, A B C …); the medians' ratios are the claim, since
machines are noisy. With OMP_NUM_THREADS=1 processor seconds are counted, which a busy machine disturbs less.
`python -m benchmarks.engines NAME…` runs only those: engines, diffusers, diffusers-bf16, openvino-bf16 (the last two a
step only). SFUMATO_BENCH_ROUNDS, SFUMATO_BENCH_SIZE and SFUMATO_BENCH_PART (unet, decode or both) choose how much.
Needs 8 GB of memory, 12 GB with OpenVINO.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sfumato
from sfumato.engines.openvino import OpenVinoUNet
from sfumato.engines.registry import start
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from sfumato.models.unet_inputs import UNetInputs
from sfumato.nn.empty import empty_modules

ROUNDS = int(os.environ.get("SFUMATO_BENCH_ROUNDS", "3"))
PART = os.environ.get("SFUMATO_BENCH_PART", "both")
SIDE = int(os.environ.get("SFUMATO_BENCH_SIZE", "512")) // 8
V1 = Path(sfumato.__file__).parent / "assets" / "v1"
DEFAULT = ("diffusers", "winograd")

Run = Callable[[], Tensor]


def networks() -> tuple[torch.nn.Module, torch.nn.Module, UNet, Autoencoder]:
    """diffusers' two networks with random weights, and ours on the very same tensors."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(V1 / "unet")).eval()
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(V1 / "vae")).eval()
    with empty_modules():
        ours = UNet(UNetConfig.from_published(dict(unet.config)))
        pictures = Autoencoder(AutoencoderConfig.from_published(dict(vae.config)))
    ours.load_state_dict(unet.state_dict(), assign=True)
    pictures.load_state_dict(vae.state_dict(), assign=True)
    return unet, vae, ours.eval(), pictures.eval()


def guided_inputs(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """What guidance gives the UNet: the same latents twice, one timestep, two contexts."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, 4, SIDE, SIDE), generator=generator).repeat(2, 1, 1, 1)
    return latents, torch.tensor([981.0, 981.0]), torch.randn((2, 77, 768), generator=generator)


def no_decode() -> Tensor:
    """Of a contestant for the step alone."""
    raise SystemExit("only the step is measured in bf16: set SFUMATO_BENCH_PART=unet")


def contestants(names: tuple[str, ...]) -> dict[str, tuple[Run, Run]]:
    """A guided step and a decode for each name."""
    theirs, their_vae, unet, vae = networks()
    x, t, context = guided_inputs()
    inputs = UNetInputs(latents=x, timesteps=t, context=context)
    z = torch.randn((1, 4, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    runs: dict[str, tuple[Run, Run]] = {}
    for name in names:
        if name == "diffusers-bf16":
            half = copy.deepcopy(theirs).bfloat16()
            runs[name] = (lambda m=half: m(x.bfloat16(), t, context.bfloat16()).sample.float(), no_decode)
        elif name == "openvino-bf16":
            network = OpenVinoUNet(unet, precision="bf16")
            runs[name] = (lambda n=network: n(inputs), no_decode)
        elif name == "diffusers":
            runs[name] = (lambda: theirs(x, t, context).sample, lambda: their_vae.decode(z).sample)
        else:
            engine = start(name, unet, vae)
            runs[name] = (lambda e=engine: e.unet(inputs), lambda e=engine: e.decode(z))
    return runs


def measure(runs: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Median seconds, the ratio to the first, and the relative error against it; one warm-up each."""
    first = next(iter(runs))
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    answers = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS):
        for name, run in runs.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
            print(f"round {round_ + 1}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    reference = answers[first]
    return {
        name: {
            "seconds": round(statistics.median(seconds[name]), 3),
            "ratio": round(statistics.median(seconds[name]) / statistics.median(seconds[first]), 3),
            "error": float((answers[name] - reference).norm() / reference.norm()),
        }
        for name in runs
    }


def main(names: tuple[str, ...] = ()) -> None:
    with torch.inference_mode():
        runs = contestants(names or DEFAULT)
        gc.collect()
        results = {}
        for i, part in enumerate(("unet", "decode")):
            if PART in (part, "both"):
                results[part] = measure({name: pair[i] for name, pair in runs.items()})
                for name, row in results[part].items():
                    print(f"{part:8}{name:16}" + "".join(f"{key} {value:<12.4g}" for key, value in row.items()))
    print(json.dumps({"threads": torch.get_num_threads(), "rounds": ROUNDS, "side": SIDE * 8, **results}))


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
