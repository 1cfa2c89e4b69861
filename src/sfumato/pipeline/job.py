"""One call of `Pipeline.generate`: which pictures it makes, in which batches, and how each is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sfumato
from sfumato.diffusion.sampler_info import PROFILES, SAMPLERS
from sfumato.diffusion.sampling import StepInfo
from sfumato.errors import InvalidRequest, OutOfMemory
from sfumato.pictures.pixels import Pixels, mask_to_tensor, picture_to_tensor, pixels_sha256, to_pixels
from sfumato.pictures.source import ImageSource
from sfumato.pictures.untrusted_pictures import open_picture
from sfumato.pictures.watermark import mark
from sfumato.pipeline.batch import Batch, Generators, Inputs, batch_key, generate_batch, make_plans, noise_source
from sfumato.pipeline.conditioning import Conditioning, encode_request, stack, stackable
from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import Request, counted
from sfumato.progress import Cancellation, OnProgress, Progress, Stage
from sfumato.runtime import dtype_name, is_of_memory, processor_name
from sfumato.safety.policy import screen
from sfumato.safety.verdict import Checker, Verdict

if TYPE_CHECKING:
    from sfumato.pipeline.pipeline import Pipeline

Picture = Image.Image | Path | str


@dataclass(slots=True)
class Results:
    """What has been made so far, picture by picture; `timings` are seconds by stage."""

    images: list[Image.Image] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    provenance: list[Provenance] = field(default_factory=list)
    model_calls: list[int] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Job:
    """The resolved requests of one call, the pictures they name, what takes the place of seeds and prompts, and whom to
    tell and ask."""

    pipeline: Pipeline
    requests: list[Request]
    pictures: Mapping[ImageSource, Image.Image]
    generator: Generators | None
    latents: Tensor | None
    conditioning: Conditioning | None
    on_progress: OnProgress
    cancellation: Cancellation

    def run(self, checker: Checker | None) -> Results:
        """Make all pictures. Raises `Cancelled`, `NumericalError`, `OutOfMemory`, `UnsafeContent`."""
        results = Results()
        clock = _Clock(results.timings)
        with clock("encode"):
            conditionings = self._encode_prompts()
        for first, group in self._groups(conditionings):
            requests = tuple(self.requests[first : first + len(group)])
            calls = _Calls()
            with clock("generate"):
                draw, seeds = noise_source(requests, _their(self.generator, first, len(group)))
                batch = Batch(
                    model=self.pipeline.model,
                    requests=requests,
                    conditioning=stack(group),
                    inputs=self._inputs(requests[0], slice(first, first + len(group))),
                    draw=draw,
                    brownian_seeds=seeds,
                    one_generator=isinstance(self.generator, torch.Generator),
                )
                images = generate_batch(batch, self._on_step(first, requests[0], calls), self._on_decoded(first, batch))
            self.cancellation.check()
            with clock("finish"):
                self._finish(images, requests, batch.conditioning, checker, results)
            results.model_calls += [calls.total] * len(requests)
        return results

    def _encode_prompts(self) -> list[Conditioning]:
        if self.conditioning is not None:
            return [self.conditioning] * len(self.requests)
        known: dict[Request, Conditioning] = {}
        conditionings = []
        for i, request in enumerate(self.requests):
            self.cancellation.check()
            self.on_progress(Progress(stage="encode", step=i, steps=len(self.requests)))
            key = request.replace(seed=0, variation_seed=None)
            if key not in known:
                known[key] = encode_request(self.pipeline.model, request)
            conditionings.append(known[key])
        return conditionings

    def _groups(self, conditionings: Sequence[Conditioning]) -> Iterator[tuple[int, list[Conditioning]]]:
        """Index of the first picture, and conditionings, of each batch in turn."""
        # One generator for all fills a batch in one draw, as diffusers has it, so all pictures have to be in it.
        together = isinstance(self.generator, torch.Generator)
        first = 0
        while first < len(self.requests):
            key, end = batch_key(self.requests[first]), first + 1
            limit = len(self.requests) if together else first + self.pipeline.batch_size
            if not SAMPLERS[self.requests[first].sampler].takes_steps:
                limit = first + 1  # its step sizes would follow the worst picture of the batch
            while (
                end < min(limit, len(self.requests))
                and batch_key(self.requests[end]) == key
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

    def _on_step(self, first: int, request: Request, calls: _Calls) -> Callable[[StepInfo], None]:
        planned = sum(plan.steps for plan in make_plans(self.pipeline.model, request))

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
                    images=len(self.requests),
                    sigma=step.sigma,
                    preview=lambda: self.pipeline.preview(x0[:1]),
                )
            )

        return on_step

    def _on_decoded(self, first: int, batch: Batch) -> Callable[[int], None]:
        def on_decoded(count: int) -> None:
            self.cancellation.check()
            self._tell("decode", count, len(batch.requests), first)

        return on_decoded

    def _tell(self, stage: Stage, step: int, steps: int, first: int) -> None:
        self.on_progress(Progress(stage=stage, step=step, steps=steps, image=first, images=len(self.requests)))

    def _finish(
        self,
        images: Tensor,
        requests: Sequence[Request],
        conditioning: Conditioning,
        checker: Checker | None,
        results: Results,
    ) -> None:
        """Pixels, safety, watermark, provenance."""
        pixels = to_pixels(images, PROFILES[requests[0].profile].rounding)
        if checker is not None:
            self._tell("check", 0, len(requests), len(results.images))
        pictures, verdicts = screen([Image.fromarray(p) for p in pixels], checker, self.pipeline.safety)
        for request, picture, verdict, cut in zip(requests, pictures, verdicts, conditioning.cut, strict=True):
            finished, state = _marked(picture) if self.pipeline.watermark else (_array(picture), "off")
            results.images.append(Image.fromarray(finished))
            results.verdicts.append(verdict)
            results.provenance.append(self._provenance(request, finished, verdict, state, cut))

    def _provenance(self, request: Request, pixels: Pixels, verdict: Verdict, watermark: str, cut: str) -> Provenance:
        model = self.pipeline.model
        return Provenance(
            request=request,
            width=pixels.shape[1],
            height=pixels.shape[0],
            pixels_sha256=pixels_sha256(pixels),
            model_name=model.name,
            model_sha256=model.sha256,
            engine=self.pipeline.engine,
            vae_tiling=self.pipeline.vae_tiling,
            device=model.device.type,
            dtype=dtype_name(model.dtype),
            threads=torch.get_num_threads(),
            processor=processor_name(model.device),
            torch=torch.__version__,
            sfumato=sfumato.__version__,
            safety=verdict.status,
            watermark=watermark,
            truncated=cut,
            policy=self.pipeline.safety,
            given=",".join(
                name for name in ("generator", "latents", "conditioning") if getattr(self, name) is not None
            ),
        )


class _Clock:
    """Adds up seconds by stage."""

    def __init__(self, timings: dict[str, float]) -> None:
        self.timings = timings

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


def expand(prompt: str | Request | Sequence[str | Request], count: int, fields: Mapping[str, Any]) -> list[Request]:
    """One request a picture: `count` of each prompt, on seeds that rise by one."""
    prompts = [prompt] if isinstance(prompt, (str, Request)) else list(prompt)
    if not prompts:
        raise InvalidRequest("no prompt was given")
    unknown = sorted(set(fields) - set(Request.__dataclass_fields__))
    if unknown:
        raise InvalidRequest(f"a request has no field {unknown[0]!r}")
    requests = [
        p.replace(**fields) if isinstance(p, Request) else Request.from_dict({"prompt": p, **_plain(fields)})
        for p in prompts
    ]
    return counted(requests, count)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, ImageSource) else value for name, value in fields.items()}


def _their(generator: Generators | None, first: int, count: int) -> Generators | None:
    return (
        generator if generator is None or isinstance(generator, torch.Generator) else generator[first : first + count]
    )


def opened(picture: Picture) -> tuple[Image.Image, ImageSource]:
    """An input picture and what names it: its pixels for one in memory, its bytes for a file."""
    if isinstance(picture, Image.Image):
        rgb = picture.convert("RGB")
        return rgb, ImageSource(sha256=pixels_sha256(_array(rgb)), width=rgb.width, height=rgb.height)
    return open_picture(Path(picture))


def referenced(source: ImageSource) -> Image.Image:
    """The input picture a request names, if it still is what it was."""
    if source.path is None:
        raise InvalidRequest(f"the request's input picture ({source.sha256[:12]}…) has no path: pass it as init_image")
    picture, found = open_picture(Path(source.path))
    if found.sha256 != source.sha256:
        raise InvalidRequest(f"{source.path} has changed since the request was made: its SHA-256 is another")
    if (found.width, found.height) != (source.width, source.height):
        raise InvalidRequest(
            f"{source.path} has {found.width}×{found.height} pixels, where the request says "
            f"{source.width}×{source.height}: correct the request"
        )
    return picture


def _marked(picture: Image.Image) -> tuple[Pixels, str]:
    return mark(_array(picture))


def _array(picture: Image.Image) -> Pixels:
    return np.array(picture)


@contextmanager
def memory_errors(request: Request) -> Iterator[None]:
    """torch's ways of saying that memory ran out, as one error that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not is_of_memory(error):
            raise
        raise OutOfMemory(
            f"{request.width}×{request.height} pixels need more memory than there is: choose a smaller size"
        ) from error
