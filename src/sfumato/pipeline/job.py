"""One call of `Pipeline.generate`: which pictures it makes, in which batches, and how each is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.diffusion.profiles import PROFILES
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.diffusion.sampling import StepInfo
from sfumato.pictures.pixels import Pixels, mask_to_tensor, picture_to_tensor, pixels_sha256, to_pixels
from sfumato.pictures.source import ImageSource
from sfumato.pictures.watermark import mark
from sfumato.pipeline.batch import Batch, Generators, Inputs, decode_pictures, noise_source, sample_latents
from sfumato.pipeline.conditioning import Conditioning, encode_request, stack, stackable
from sfumato.pipeline.generation import Generation
from sfumato.pipeline.model import Model
from sfumato.pipeline.planning import PlannedRequest, batch_key
from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import Request
from sfumato.progress import Cancellation, OnProgress, Progress, Stage
from sfumato.runtime import dtype_name, processor_name
from sfumato.safety.policy import Policy, screen
from sfumato.safety.verdict import Checker, Verdict
from sfumato.version import __version__

Output = Literal["images", "latents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One picture as it is handed out."""

    image: Image.Image
    provenance: Provenance
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The planned requests of one call, the pictures they name, what takes the place of seeds and prompts, how pictures
    are finished, unless latents are the `output`, and whom to tell and ask.

    `latents` (B, C, h, w) is unit starting noise for all of them; `preview` makes a small picture of scaled latents
    (1, C, h, w).
    """

    model: Model
    planned: Sequence[PlannedRequest]
    batch_size: int
    pictures: Mapping[ImageSource, Image.Image]
    generator: Generators | None
    latents: Tensor | None
    conditioning: Conditioning | None
    output: Output
    policy: Policy
    checker: Checker | None
    watermark: bool
    preview: Callable[[Tensor], Image.Image]
    on_progress: OnProgress
    cancellation: Cancellation

    def run(self) -> Generation:
        """Make all pictures of the job. Raises `Cancelled`, `NumericalError`, `OutOfMemory`, `UnsafeContent`."""
        latents: list[Tensor] = []
        model_calls: list[int] = []
        made: list[Finished] = []
        clock = _Clock()
        with clock("encode"):
            conditionings = self._encode_prompts()
        for first, group in self._groups(conditionings):
            planned = self.planned[first : first + len(group)]
            calls = _Calls()
            with clock("generate"):
                requests = tuple(one.request for one in planned)
                draw, seeds = noise_source(requests, _their(self.generator, first, len(group)))
                batch = Batch(
                    model=self.model,
                    requests=requests,
                    plans=planned[0].plans,
                    conditioning=stack(group),
                    inputs=self._inputs(requests[0], slice(first, first + len(group))),
                    draw=draw,
                    brownian_seeds=seeds,
                    one_generator=isinstance(self.generator, torch.Generator),
                )
                on_decoded = self._on_decoded(first, batch)
                sampled = sample_latents(batch, self._on_step(first, batch, calls), on_decoded)
                latents += sampled
                model_calls += [calls.total] * len(group)
                if self.output == "latents":
                    continue
                images = decode_pictures(batch, sampled, on_decoded)
            self.cancellation.check()
            with clock("finish"):
                made += self._finish(images, batch, first)
        return Generation(
            images=tuple(one.image for one in made),
            requests=tuple(one.request for one in self.planned),
            provenance=tuple(one.provenance for one in made),
            verdicts=tuple(one.verdict for one in made),
            latents=tuple(latents),
            model_calls=tuple(model_calls),
            timings=clock.timings,
        )

    def _encode_prompts(self) -> list[Conditioning]:
        if self.conditioning is not None:
            return [self.conditioning] * len(self.planned)
        known: dict[Request, Conditioning] = {}
        conditionings = []
        for i, one in enumerate(self.planned):
            self.cancellation.check()
            self.on_progress(Progress(stage="encode", step=i, steps=len(self.planned)))
            key = one.request.replace(seed=0, variation_seed=None)
            if key not in known:
                known[key] = encode_request(self.model, one.request)
            conditionings.append(known[key])
        return conditionings

    def _groups(self, conditionings: Sequence[Conditioning]) -> Iterator[tuple[int, list[Conditioning]]]:
        """Give the index of the first picture, and the conditionings, of each batch in turn."""
        # One generator for all fills a batch in one draw, as diffusers has it, so all pictures have to be in it.
        together = isinstance(self.generator, torch.Generator)
        requests = [one.request for one in self.planned]
        first = 0
        while first < len(requests):
            key, end = batch_key(requests[first]), first + 1
            limit = len(requests) if together else first + self.batch_size
            if not SAMPLERS[requests[first].sampler].takes_steps:
                limit = first + 1  # its step sizes would follow the worst picture of the batch
            while (
                end < min(limit, len(requests))
                and batch_key(requests[end]) == key
                and stackable(conditionings[first : end + 1])
            ):
                end += 1
            yield first, list(conditionings[first:end])
            first = end

    def _inputs(self, request: Request, pictures: slice) -> Inputs:
        assert request.width and request.height
        size = (request.width, request.height)
        init, mask = request.init_image, request.mask
        return Inputs(
            picture=picture_to_tensor(self.pictures[init], *size) if init is not None else None,
            mask=mask_to_tensor(self.pictures[mask], *size) if mask is not None else None,
            latents=self.latents[pictures] if self.latents is not None else None,
        )

    def _on_step(self, first: int, batch: Batch, calls: _Calls) -> Callable[[StepInfo], None]:
        planned = sum(plan.steps for plan in batch.plans)

        def on_step(step: StepInfo) -> None:
            self.cancellation.check()
            calls.note(step)
            x0 = step.x0
            self.on_progress(
                Progress(
                    stage="denoise",
                    step=calls.steps,
                    steps=planned if step.steps else calls.steps,
                    image=first,
                    images=len(self.planned),
                    sigma=step.sigma,
                    preview=lambda: self.preview(x0[:1]),
                )
            )

        return on_step

    def _on_decoded(self, first: int, batch: Batch) -> Callable[[int], None]:
        def on_decoded(count: int) -> None:
            self.cancellation.check()
            self._tell("decode", count, len(batch.requests), first)

        return on_decoded

    def _tell(self, stage: Stage, step: int, steps: int, first: int) -> None:
        self.on_progress(Progress(stage=stage, step=step, steps=steps, image=first, images=len(self.planned)))

    def _finish(self, images: Tensor, batch: Batch, first: int) -> Iterator[Finished]:
        """Bring decoded pictures (B, 3, H, W) to 8 bits, through safety and watermark, with their provenance."""
        pixels = to_pixels(images, PROFILES[batch.request.profile].rounding)
        if self.checker is not None:
            self._tell("check", 0, len(pixels), first)
        pictures, verdicts = screen([Image.fromarray(p) for p in pixels], self.checker, self.policy)
        for request, picture, verdict, cut in zip(
            batch.requests, pictures, verdicts, batch.conditioning.cut, strict=True
        ):
            shown = np.array(picture)
            finished, state = mark(shown) if self.watermark else (shown, "off")
            yield Finished(
                image=Image.fromarray(finished),
                provenance=self._provenance(request, finished, verdict, state, cut),
                verdict=verdict,
            )

    def _provenance(self, request: Request, pixels: Pixels, verdict: Verdict, watermark: str, cut: str) -> Provenance:
        model = self.model
        return Provenance(
            request=request,
            width=pixels.shape[1],
            height=pixels.shape[0],
            pixels_sha256=pixels_sha256(pixels),
            model_name=model.name,
            model_sha256=model.sha256,
            engine=model.engine.name,
            vae_tiling=model.engine.tiling,
            device=model.device.type,
            dtype=dtype_name(model.dtype),
            threads=torch.get_num_threads(),
            processor=processor_name(model.device),
            torch=torch.__version__,
            sfumato=__version__,
            safety=verdict.status,
            watermark=watermark,
            truncated=cut,
            policy=self.policy,
            given=",".join(
                name for name in ("generator", "latents", "conditioning") if getattr(self, name) is not None
            ),
        )


class _Clock:
    """Adds up seconds by stage."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - started


class _Calls:
    """Counts steps and model calls over the passes of one batch (two, with `upscale`), each of which counts from its
    start."""

    def __init__(self) -> None:
        self.steps = 0
        self.passes: list[int] = []

    def note(self, step: StepInfo) -> None:
        if step.index == 0:
            self.passes.append(0)
        self.passes[-1] = step.calls
        self.steps += 1

    @property
    def total(self) -> int:
        return sum(self.passes)


def _their(generator: Generators | None, first: int, count: int) -> Generators | None:
    return (
        generator if generator is None or isinstance(generator, torch.Generator) else generator[first : first + count]
    )
