"""Presets: what they give up on a model that paints, and what they save at v1-4's size beside diffusers' 50 PLMS steps.

SFUMATO_BENCH_PART chooses. "quality" is `sfumato bench --quality` for SFUMATO_BENCH_MODEL (pocket), its sheet in
SFUMATO_BENCH_SHEET (presets.png). "time" measures each kind of UNet call and the decoders at v1-4's shapes with random
weights, in turn, SFUMATO_BENCH_ROUNDS times, and adds up what each preset's calls come to; "image" also runs turbo's
whole picture. With OMP_NUM_THREADS=1 processor seconds are counted, which a busy machine disturbs less. The second and
the third need 8 GB of memory.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.engines import ROUNDS, SIDE, guided_inputs, networks
from sfumato.cli.machine.bench_quality import Quality, show_quality, write_quality
from sfumato.diffusion.noise import seeded_noise
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.engines.registry import start
from sfumato.modelfiles.identity import ModelIdentity
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.unet_inputs import Shortcuts, UNetInputs
from sfumato.nn.token_merging import Merging
from sfumato.pipeline.batch import Batch, Inputs, decode_pictures, sample_latents
from sfumato.pipeline.conditioning import Conditioning
from sfumato.pipeline.model import Model
from sfumato.pipeline.planning import plan_requests
from sfumato.pipeline.presets import PRESETS, with_preset
from sfumato.pipeline.request import GUIDANCE_SCALE, Request
from sfumato.prompt.tokenizer import Tokenizer

PARTS = "quality,time"
DIFFUSERS_CALLS = 51  # PNDM's first step of 50 calls twice


@dataclass(frozen=True, slots=True)
class Call:
    """A kind of UNet call: rows of the batch, whether the depths are taken from the last one, whether tokens merge."""

    rows: int
    shallow: bool
    merging: float

    def __str__(self) -> str:
        return f"{'guided' if self.rows == 2 else 'single'}{' shallow' * self.shallow}{' merged' * (self.merging > 0)}"


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def v1_model(name: str = "winograd") -> tuple[Model, Callable[[], Tensor], Callable[[], Tensor]]:
    """A model of v1-4's two large networks with random weights, and diffusers' guided step and decode on the same."""
    theirs, their_vae, unet, vae = networks()
    x, t, context = guided_inputs()
    z = torch.randn((1, 4, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    assets = Path(__file__).parents[1] / "src/sfumato/assets"
    model = Model(
        name="v1-4 shapes",
        path=Path(),
        vae_path=None,
        identity=ModelIdentity(path=Path(), weights=(), last_step=False),
        unet=unet,
        autoencoder=vae,
        engine=start(name, unet, vae),
        text_encoder=ClipText(ClipTextConfig(width=8, hidden=8, layers=1, heads=1)),
        tokenizer=Tokenizer.from_folder(assets / "v1/tokenizer"),
        noise_schedule=NoiseSchedule(),
        scheduler={},
        prediction="epsilon",
        safety_checker=None,
        requires_safety_checker=False,
        guidance_scale=GUIDANCE_SCALE,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return model, lambda: theirs(x, t, context).sample, lambda: their_vae.decode(z).sample


def picture(model: Model, request: Request) -> Tensor:
    """All of a picture but its prompt's encoding."""
    contexts = torch.randn((2, 1, 77, 768), generator=torch.Generator().manual_seed(3)).unbind()
    batch = Batch(
        model=model,
        requests=(request,),
        plans=plan_requests(model, [request])[0].plans,
        conditioning=Conditioning(tuple(contexts), (1.0,), ("",)),
        inputs=Inputs(),
        draw=seeded_noise("cpu", [0]),
        brownian_seeds=(0,),
    )
    return decode_pictures(batch, sample_latents(batch, lambda step: None, lambda count: None), lambda count: None)


def preset_request(name: str) -> Request:
    fields = {"width": 8 * SIDE, "height": 8 * SIDE, "guidance_scale": GUIDANCE_SCALE}
    return Request(prompt="", **with_preset({"preset": name, **fields}))


def calls(model: Model, request: Request) -> Counter[Call]:
    """What a picture asks of the UNet, by kind."""
    counted: Counter[Call] = Counter()

    def unet(inputs: UNetInputs) -> Tensor:
        x, _, _ = inputs.rows(torch.float32)
        ways = inputs.shortcuts or Shortcuts()
        counted[Call(len(x), ways.deep is not None, ways.merging.ratio if ways.merging else 0.0)] += 1
        if ways.depth is not None:
            ways.deep = x
        return x * 0.1

    def decode(z: Tensor) -> Tensor:
        return torch.zeros(len(z), 3, 8, 8)

    engine = replace(model.engine, unet=unet, decode=decode)
    picture(replace(model, engine=engine), request)
    return counted


def measure(model: Model, kinds: list[Call], depth: int) -> Callable[[Call], Callable[[], Tensor]]:
    """How to make one call of each kind."""
    x, t, context = guided_inputs()
    whole = Shortcuts(depth=depth)
    if any(kind.shallow for kind in kinds):
        model.engine.unet(UNetInputs(latents=x, timesteps=t, context=context, shortcuts=whole))

    def call(kind: Call) -> Callable[[], Tensor]:
        merging = Merging(ratio=kind.merging, seed=0) if kind.merging else None
        deep = whole.deep[: kind.rows] if kind.shallow and whole.deep is not None else None
        latents, timesteps, given = (value[-kind.rows :] for value in (x, t, context))

        def run() -> Tensor:
            ways = Shortcuts(merging=merging, depth=depth if kind.shallow else None, deep=deep)
            return model.engine.unet(UNetInputs(latents=latents, timesteps=timesteps, context=given, shortcuts=ways))

        return run

    return call


def times(model: Model, their_step: Callable[[], Tensor], their_decode: Callable[[], Tensor]) -> Mapping[str, object]:
    """Medians of each kind in turn, and what they come to."""
    wanted = {name: calls(model, preset_request(name)) for name in PRESETS}
    kinds = list(dict.fromkeys(kind for counted in wanted.values() for kind in counted))
    make = measure(model, kinds, PRESETS["turbo"].fields["cache_depth"])
    z = torch.randn((1, 4, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    runs: dict[object, Callable[[], Tensor]] = {
        "diffusers guided": their_step,
        **{kind: make(kind) for kind in kinds},
        "diffusers decode": their_decode,
        "decode": lambda: model.engine.decode(z),
    }
    seconds: dict[object, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
            print(f"  {name!s:24} {seconds[name][-1]:8.2f} s", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    theirs = DIFFUSERS_CALLS * median["diffusers guided"] + median["diffusers decode"]
    rows = {}
    for name, counted in wanted.items():
        ours = sum(median[kind] * count for kind, count in counted.items()) + median["decode"]
        rows[name] = {
            "calls": {str(kind): count for kind, count in counted.items()},
            "seconds": round(ours, 1),
            "ratio": round(ours / theirs, 4),
        }
        print(f"{name:8}{ours:9.1f} s of {theirs:.1f} s: 1/{theirs / ours:.1f}; {rows[name]['calls']}")
    return {
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "seconds": {str(name): round(value, 3) for name, value in median.items()},
        "diffusers": round(theirs, 1),
        "presets": rows,
    }


def quality() -> None:
    """The sheet and the table of one model."""
    sheet = Path(os.environ.get("SFUMATO_BENCH_SHEET", "presets.png"))
    made = show_quality(os.environ.get("SFUMATO_BENCH_MODEL", "pocket"), Quality(), sheet, overwrite=True)
    write_quality(made)
    print(made["sheet"])


def main() -> None:
    parts = os.environ.get("SFUMATO_BENCH_PART", PARTS).split(",")
    if "quality" in parts:
        quality()
    if {"time", "image"} & set(parts):
        with torch.inference_mode():
            model, their_step, their_decode = v1_model()
            if "time" in parts:
                print(json.dumps(times(model, their_step, their_decode)))
            if "image" in parts:
                started = clock()
                picture(model, preset_request("turbo"))
                print(json.dumps({"turbo, whole": round(clock() - started, 1)}))


if __name__ == "__main__":
    main()
