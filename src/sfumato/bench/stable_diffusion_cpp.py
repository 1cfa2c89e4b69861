"""stable-diffusion.cpp through its Python package: it hands out neither networks nor tensors, so its steps are timed
by the progress it reports."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.bench.bench_plan import PROMPT, Plan
from sfumato.pipeline.request import GUIDANCE_SCALE
from sfumato.runtime import require

_V1_SIDE = 512


class CppRunner:
    """Every answer takes a whole picture, of which only the part asked for is counted. On the CPU, in float32."""

    runs, dtype = "stable-diffusion.cpp", "float32"
    answer: Tensor | None = None

    def __init__(self, model: Any, plan: Plan) -> None:
        self._model, self._side, self._batch = model, plan.size or _V1_SIDE, plan.batch

    def steps(self, count: int) -> float:
        began, stepped, _ = self._picture(count)
        return (stepped - began) * self._batch

    def decode(self) -> float:
        _, stepped, ended = self._picture(1)
        return (ended - stepped) * self._batch

    def image(self, steps: int, count: int | None = None) -> float:
        began = time.perf_counter()
        for _ in range(count or self._batch):
            self._picture(steps)
        return time.perf_counter() - began

    def _picture(self, steps: int) -> tuple[float, float, float]:
        """When the first step began, when the last one ended, and when the picture was there."""
        seen: dict[int, float] = {}

        def note(step: int, of: int, seconds: float) -> None:
            if of == steps:
                seen.setdefault(step, time.perf_counter())

        self._model.generate_image(
            prompt=PROMPT,
            cfg_scale=GUIDANCE_SCALE,
            sample_method="euler",
            sample_steps=steps,
            width=self._side,
            height=self._side,
            seed=0,
            progress_callback=note,
        )
        return seen[0], seen[steps], time.perf_counter()


def load(plan: Plan, model: Path) -> CppRunner:
    """Load the contender. Raises `MissingExtra` without its package, and what it raises for a model it doesn't know."""
    package: Any = require("stable_diffusion_cpp", extra="bench-cpp")
    threads = plan.threads if plan.threads is not None else -1
    loaded = package.StableDiffusion(model_path=str(model), n_threads=threads, vae_decode_only=True, verbose=False)
    return CppRunner(loaded, plan)
