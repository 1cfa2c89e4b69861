"""`Pipeline`: prompts in, pictures out, each with everything needed to make it again."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import sfumato
from sfumato.diffusion.catalog import PROFILES, SAMPLERS
from sfumato.diffusion.sampling import StepInfo
from sfumato.errors import InvalidRequest, OutOfMemory
from sfumato.pipeline.batch import Batch, Generators, Inputs, batch_key, decode, encode, generate_batch, noise_source
from sfumato.pipeline.conditioning import Conditioning, encode_request, stack, stackable
from sfumato.pipeline.images import (
    Pixels,
    fitting_size,
    mask_to_tensor,
    picture_to_tensor,
    pixels_sha256,
    to_pixels,
)
from sfumato.pipeline.model import Model
from sfumato.pipeline.picture_files import open_picture
from sfumato.pipeline.preview import Preview
from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import ImageSource, Request
from sfumato.pipeline.watermark import mark
from sfumato.progress import Cancellation, OnProgress, Progress, ignore
from sfumato.runtime import processor_name
from sfumato.safety.policy import Policy, choose_checker, screen
from sfumato.safety.verdict import Checker, Verdict

logger = logging.getLogger("sfumato")

Picture = Image.Image | Path | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a call made: pictures, each with its resolved request, its provenance and the safety verdict on it.

    `timings` are seconds by stage. A notebook shows the pictures.
    """

    images: tuple[Image.Image, ...]
    requests: tuple[Request, ...]
    provenance: tuple[Provenance, ...]
    verdicts: tuple[Verdict, ...]
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each picture."""
        return tuple(request.seed for request in self.requests)

    def _repr_png_(self) -> bytes:
        import io

        import numpy as np

        from sfumato.pipeline.contact_sheet import montage

        buffer = io.BytesIO()
        Image.fromarray(montage([np.asarray(image) for image in self.images])).save(buffer, "PNG")
        return buffer.getvalue()


class Pipeline:
    """A loaded model with its policies. Safe to use from several threads at once.

    `safety` is what happens to pictures a checker flags; `watermark` hides the original scripts' mark in pictures
    large enough for it. `batch_size` is how many pictures run together; by default one on a CPU, where neighbours
    would change the rounding and nothing is gained, and eight elsewhere.
    """

    engine = "eager"

    def __init__(
        self, model: Model, *, safety: Policy = "flag", watermark: bool = True, batch_size: int | None = None
    ) -> None:
        self.model = model
        self.safety = safety
        self.watermark = watermark
        self.batch_size = batch_size or (1 if model.device.type == "cpu" else 8)
        self._lock = threading.Lock()
        self._checker: Checker | None = None
        self._checker_chosen = False
        self._preview: Preview | None = None

    def __repr__(self) -> str:
        return f"Pipeline({self.model.name!r}, device={str(self.model.device)!r}, dtype={_name(self.model.dtype)!r})"

    def resolve(self, request: Request) -> Request:
        """The request as this pipeline will run it: model named, sizes filled in. Raises `InvalidRequest`."""
        size = self.model.size
        resolved = request.replace(
            model=self.model.name,
            vae=str(self.model.vae_path) if self.model.vae_path else None,
            width=request.width or size,
            height=request.height or size,
        )
        factor = self.model.autoencoder.config.factor
        for name in ("width", "height"):
            side = getattr(resolved, name)
            if side % factor:
                raise InvalidRequest(
                    f"{name} {side}: this model needs multiples of {factor}: use {side // factor * factor or factor} "
                    f"or {(side // factor + 1) * factor}"
                )
        if self.model.inpaints and request.mask is None:
            raise InvalidRequest(f"model {self.model.name!r} is for inpainting: give it an init image and a mask")
        return resolved

    def generate(
        self,
        prompt: str | Request | Sequence[str | Request],
        *,
        count: int = 1,
        init_image: Picture | None = None,
        mask: Picture | None = None,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        conditioning: Conditioning | None = None,
        on_progress: OnProgress = ignore,
        cancellation: Cancellation | None = None,
        **fields: Any,
    ) -> Generation:
        """Make pictures.

        `prompt` is a text, a `Request`, or several; `fields` are fields of `Request` (steps=20, sampler="k_lms" …)
        that hold for all of them. Picture i of `count` takes seed + i; several prompts share the seed they are given.
        `init_image` and `mask` (white: repaint) are pictures or paths. `generator` draws all noise in the place of
        the seeds, one for all or one for each picture; `latents` (B, C, h, w) is the unit starting noise itself;
        `conditioning` (`encode_prompt`) takes the place of every prompt's own.
        Raises `InvalidRequest` before any work where it can, `Cancelled` within a step of `cancellation`.
        """
        started = time.perf_counter()
        cancellation = cancellation or Cancellation()
        picture, picture_source = _opened(init_image)
        mask_picture, mask_source = _opened(mask)
        sources = {"init_image": picture_source, "mask": mask_source}
        fields |= {name: source for name, source in sources.items() if source is not None}
        if generator is not None:
            fields["noise"] = "generator"
        requests = _expand(prompt, count, fields)
        if picture is None and requests[0].init_image is not None:
            picture = _referenced(requests[0].init_image)
        if mask_picture is None and requests[0].mask is not None:
            mask_picture = _referenced(requests[0].mask)
        if picture is not None:
            width, height = fitting_size(picture)
            requests = [r.replace(width=r.width or width, height=r.height or height) for r in requests]
        requests = [self.resolve(request) for request in requests]
        if generator is not None and not isinstance(generator, torch.Generator) and len(generator) != len(requests):
            raise InvalidRequest(f"{len(generator)} generators for {len(requests)} pictures: give one, or one for each")
        if latents is not None and len(latents) != len(requests):
            raise InvalidRequest(f"latents for {len(latents)} pictures were given, this call makes {len(requests)}")
        for request in requests:
            if request.noise == "generator" and generator is None:
                raise InvalidRequest("noise 'generator' needs the generator the picture was made with: pass it")
        checker = self._choose_checker()
        with torch.inference_mode(), _memory_errors(requests[0]):
            job = _Job(
                self, requests, picture, mask_picture, generator, latents, conditioning, on_progress, cancellation
            )
            result = job.run(checker)
        return Generation(
            images=tuple(result.images),
            requests=tuple(requests),
            provenance=tuple(result.provenance),
            verdicts=tuple(result.verdicts),
            timings={**result.timings, "total": time.perf_counter() - started},
        )

    def stream(
        self, prompt: str | Request | Sequence[str | Request], **options: Any
    ) -> Iterator[Progress | Generation]:
        """`generate` as an iterator over its progress; the `Generation` comes last. Closing it stops the work."""
        events: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        cancellation = options.pop("cancellation", None) or Cancellation()
        with ThreadPoolExecutor(1, thread_name_prefix="sfumato-stream") as pool:
            future = pool.submit(self.generate, prompt, on_progress=events.put, cancellation=cancellation, **options)
            future.add_done_callback(lambda _: events.put(None))
            try:
                while (event := events.get()) is not None:
                    yield event
            except GeneratorExit:
                cancellation.cancel()
                raise
            yield future.result()

    @torch.inference_mode()
    def encode_prompt(self, prompt: str, negative_prompt: str = "", **fields: Any) -> Conditioning:
        """The contexts a prompt gives, (1, T, C) each: the negative prompt's, then one a condition."""
        return encode_request(self.model, Request(prompt=prompt, negative_prompt=negative_prompt, **fields))

    @torch.inference_mode()
    def encode_image(self, image: Picture, *, seed: int = 0) -> Tensor:
        """Scaled latents (1, C, h, w) of a picture, a sample of the autoencoder's posterior."""
        picture, _ = _opened(image)
        assert picture is not None
        width, height = fitting_size(picture, max(8, self.model.autoencoder.config.factor))
        draw, _ = noise_source([Request(prompt="", seed=seed)], None)
        return encode(self.model, picture_to_tensor(picture, width, height), draw)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) → pictures (B, 3, H, W) float32, about [-1, 1]."""
        return decode(self.model, latents.to(self.model.device))

    def preview(self, latents: Tensor) -> Image.Image:
        """A small picture of scaled latents (1, C, h, w), a pixel a cell; nearly free after the first."""
        with self._lock:
            if self._preview is None:
                self._preview = Preview(self.model.autoencoder)
        return self._preview(latents)

    def _choose_checker(self) -> Checker | None:
        with self._lock:
            if not self._checker_chosen:
                self._checker = choose_checker(
                    self.safety, self._own_checker(), required=self.model.requires_safety_checker
                )
                self._checker_chosen = True
            return self._checker

    def _own_checker(self) -> Callable[[], Checker] | None:
        folder, device, dtype = self.model.safety_checker, self.model.device, self.model.dtype
        if folder is None:
            return None

        def load() -> Checker:
            from sfumato.pipeline.safety_checker import load_safety_checker

            return load_safety_checker(folder, device=device, dtype=dtype)

        return load


@dataclass(slots=True)
class _Results:
    images: list[Image.Image] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    provenance: list[Provenance] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Job:
    """One call of `generate`: its inputs, and where it tells and asks."""

    pipeline: Pipeline
    requests: list[Request]
    picture: Image.Image | None
    mask: Image.Image | None
    generator: Generators | None
    latents: Tensor | None
    conditioning: Conditioning | None
    on_progress: OnProgress
    cancellation: Cancellation

    def run(self, checker: Checker | None) -> _Results:
        model, results = self.pipeline.model, _Results()
        started = time.perf_counter()
        conditionings = self._encode_prompts()
        results.timings["encode"] = time.perf_counter() - started
        results.timings |= {"denoise": 0.0, "save": 0.0}
        for first, group in self._groups(conditionings):
            started = time.perf_counter()
            requests = tuple(self.requests[first : first + len(group)])
            draw, seeds = noise_source(requests, _their(self.generator, first, len(group)))
            batch = Batch(
                model=model,
                requests=requests,
                conditioning=stack(group),
                inputs=self._inputs(requests[0], slice(first, first + len(group))),
                draw=draw,
                brownian_seeds=seeds,
                one_generator=isinstance(self.generator, torch.Generator),
            )
            images = generate_batch(batch, self._on_step(first, requests[0]))
            results.timings["denoise"] += time.perf_counter() - started
            started = time.perf_counter()
            self.cancellation.check()
            self._finish(images, requests, batch.conditioning, checker, results)
            results.timings["save"] += time.perf_counter() - started
        results.timings["finish"] = results.timings.pop("save")
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
        return Inputs(
            picture=picture_to_tensor(self.picture, *size) if self.picture is not None else None,
            mask=mask_to_tensor(self.mask, *size) if self.mask is not None else None,
            latents=self.latents[pictures] if self.latents is not None else None,
        )

    def _on_step(self, first: int, request: Request) -> Callable[[StepInfo], None]:
        def on_step(step: StepInfo) -> None:
            self.cancellation.check()
            x0 = step.x0
            self.on_progress(
                Progress(
                    stage="denoise",
                    step=step.index + 1,
                    steps=step.steps or step.index + 1,
                    image=first,
                    images=len(self.requests),
                    sigma=step.sigma,
                    preview=lambda: self.pipeline.preview(x0[:1]),
                )
            )

        return on_step

    def _finish(
        self,
        images: Tensor,
        requests: Sequence[Request],
        conditioning: Conditioning,
        checker: Checker | None,
        results: _Results,
    ) -> None:
        """Pixels, safety, watermark, provenance."""
        pixels = to_pixels(images, PROFILES[requests[0].profile].rounding)
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
            device=model.device.type,
            dtype=_name(model.dtype),
            threads=torch.get_num_threads(),
            processor=processor_name(model.device),
            torch=torch.__version__,
            sfumato=sfumato.__version__,
            safety=verdict.status,
            watermark=watermark,
            truncated=cut,
        )


def _expand(prompt: str | Request | Sequence[str | Request], count: int, fields: Mapping[str, Any]) -> list[Request]:
    """One request a picture: `count` of each prompt, on seeds that rise by one."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10_000:
        raise InvalidRequest(f"count {count!r} must be a whole number from 1 to 10000")
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
    return [request.replace(seed=request.seed + i) for request in requests for i in range(count)]


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    import dataclasses

    return {k: dataclasses.asdict(v) if isinstance(v, ImageSource) else v for k, v in fields.items()}


def _their(generator: Generators | None, first: int, count: int) -> Generators | None:
    return (
        generator if generator is None or isinstance(generator, torch.Generator) else generator[first : first + count]
    )


def _opened(picture: Picture | None) -> tuple[Image.Image | None, ImageSource | None]:
    """A picture in memory is named by its pixels, a file by its bytes."""
    if picture is None:
        return None, None
    if isinstance(picture, Image.Image):
        rgb = picture.convert("RGB")
        return rgb, ImageSource(sha256=pixels_sha256(_array(rgb)), width=rgb.width, height=rgb.height)
    return open_picture(Path(picture))


def _referenced(source: ImageSource) -> Image.Image:
    """The input picture a request names, if it still is what it was."""
    if source.path is None:
        raise InvalidRequest(f"the request's input picture ({source.sha256[:12]}…) has no path: pass it as init_image")
    picture, found = open_picture(Path(source.path))
    if found.sha256 != source.sha256:
        raise InvalidRequest(f"{source.path} has changed since the request was made: its SHA-256 is another")
    return picture


def _marked(picture: Image.Image) -> tuple[Pixels, str]:
    return mark(_array(picture))


def _array(picture: Image.Image) -> Pixels:
    import numpy as np

    return np.array(picture)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _memory_errors(request: Request) -> Iterator[None]:
    """torch's ways of saying that memory ran out, as one error that says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, OutOfMemory) or (
            type(error) is RuntimeError and "allocate memory" not in text and "not enough memory" not in text
        ):
            raise
        raise OutOfMemory(
            f"{request.width}×{request.height} pixels need more memory than there is: choose a smaller size"
        ) from error
