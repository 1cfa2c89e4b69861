"""`Pipeline`: prompts in, pictures out, each with everything needed to make it again."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from sfumato.choices import check_choice
from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import fitting_size, picture_to_tensor
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.batch import Generators, decode, encode, noise_source
from sfumato.pipeline.conditioning import Conditioning, encode_request, plan_prompts
from sfumato.pipeline.deep_cache import check_shortcuts
from sfumato.pipeline.generation import Generation
from sfumato.pipeline.inputs import Picture, check_latents, expand, opened, pictures_named, sized, sources_of
from sfumato.pipeline.job import Job, Output
from sfumato.pipeline.memory_need import check_memory, memory_errors, memory_set_aside
from sfumato.pipeline.model import Model
from sfumato.pipeline.planning import PlannedRequest, batch_key, plan_requests
from sfumato.pipeline.presets import PRESET, with_preset
from sfumato.pipeline.preview import Preview
from sfumato.pipeline.request import Request, check_effect
from sfumato.progress import Cancellation, OnProgress, Progress, ignore
from sfumato.runtime import dtype_name, logger
from sfumato.safety.policy import Policy, choose_checker
from sfumato.safety.verdict import Checker

_LOADED_WITH = {"model": "{!r}", "vae": "…, vae={!r}"}


class Pipeline:
    """A loaded model with its policies. Safe to use from several threads at once.

    `safety` is what happens to pictures a checker flags; `watermark` hides the original scripts' mark in pictures
    large enough for it. `batch_size` is how many pictures run together; by default one on a CPU, where neighbours
    would change the rounding and nothing is gained, and eight elsewhere.
    """

    def __init__(
        self, model: Model, *, safety: Policy = "flag", watermark: bool = True, batch_size: int | None = None
    ) -> None:
        self.model = model
        self.watermark = watermark
        if batch_size is not None and batch_size < 1:
            raise InvalidRequest(f"batch_size {batch_size} must be at least 1", field="batch_size")
        self.batch_size = batch_size or (1 if model.device.type == "cpu" else 8)
        self._lock = threading.Lock()
        self._checker: Checker | None = None
        self.safety = safety
        self._noted: set[str] = set()
        self._preview: Preview | None = None

    @property
    def safety(self) -> Policy:
        """What happens to flagged pictures. Setting a name that is no policy raises `InvalidRequest`."""
        return self._safety

    @safety.setter
    def safety(self, policy: Policy) -> None:
        check_choice("safety", policy, get_args(Policy))
        with self._lock:
            self._safety = policy
            self._checker_chosen = self._checker is not None  # "off" chose none; another policy has to look for one

    @property
    def engine(self) -> str:
        """The name of what runs the networks, as pictures record it."""
        return self.model.engine.name

    @property
    def vae_tiling(self) -> str:
        """How large pictures pass the autoencoder (`engines.names.TILINGS`), as pictures record it."""
        return self.model.engine.tiling

    def __repr__(self) -> str:
        return (
            f"Pipeline({self.model.name!r}, device={str(self.model.device)!r}, dtype={dtype_name(self.model.dtype)!r})"
        )

    def resolve(self, request: Request) -> Request:
        """The request as this pipeline runs it: model named, sizes and guidance filled in. Raises `InvalidRequest`."""
        check_effect(request)
        size = self.model.size
        resolved = request.replace(
            model=self.model.name,
            vae=str(self.model.vae_path) if self.model.vae_path else None,
            width=request.width or size,
            height=request.height or size,
            guidance_scale=self.model.guidance_scale if request.guidance_scale is None else request.guidance_scale,
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
        check_shortcuts(self.model, resolved)
        return resolved

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what `generate` would refuse of these, reading prompts and sizes but making no picture.

        Input pictures are not asked for: a request that names one is checked by what it says of it.

        Raises `InvalidRequest`, and `UnsafeContent` where the safety policy can't be kept.
        """
        planned = self._planned(requests)
        for request, batch in self._batches(planned).items():
            check_memory(self.model, request, batch)
        for one in planned:
            plan_prompts(self.model, one.request)
        self._choose_checker()

    def generate(
        self,
        prompt: str | Request | Sequence[str | Request],
        *,
        count: int = 1,
        preset: str | None = None,
        init_image: Picture | None = None,
        mask: Picture | None = None,
        inputs: Mapping[str, Picture] | None = None,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        conditioning: Conditioning | None = None,
        output: Output = "images",
        on_progress: OnProgress = ignore,
        cancellation: Cancellation | None = None,
        **fields: Any,
    ) -> Generation:
        """Make pictures.

        `prompt` is a text, a `Request`, or several; `fields` are fields of `Request` (steps=20, sampler="k_lms" …)
        that hold for all of them, and win over those of the `preset`. Picture i of `count` takes seed + i; several
        prompts share the seed they are given.
        `init_image` and `mask` (white: repaint) are pictures in memory (PIL's, or arrays) or paths; pictures that a
        `Request` names already are given as `inputs`, by their SHA-256, since no path that it holds is opened.
        `generator` draws all noise in the place of the seeds, one for all or one for each picture; `latents`
        (B, C, h, w) is the unit starting noise itself; `conditioning` (`encode_prompt`) takes the place of every
        prompt's own. `output` "latents" leaves the last decoding out, and with it the pictures and their safety check.
        Raises `InvalidRequest` before any work where it can, `Cancelled` within a step of `cancellation`.
        """
        started = time.perf_counter()
        check_choice("output", output, get_args(Output))
        fields = with_preset({**fields, PRESET: preset})
        self._check_names(fields)
        pictures: dict[ImageSource, Image.Image] = {}
        for name, given in (("init_image", init_image), ("mask", mask)):
            if given is not None:
                picture, fields[name] = opened(given)
                pictures[fields[name]] = picture
        if generator is not None:
            fields["noise"] = "generator"
        requests = expand(prompt, count, fields)
        pictures |= pictures_named(sources_of(requests) - pictures.keys(), inputs or {})
        if conditioning is not None and not isinstance(conditioning, Conditioning):
            raise InvalidRequest(f"conditioning must come from encode_prompt, not be a {type(conditioning).__name__}")
        for one in generator if isinstance(generator, Sequence) else [generator]:
            if one is not None and not isinstance(one, torch.Generator):
                raise InvalidRequest(f"a generator must be torch's, not a {type(one).__name__}")
        if isinstance(generator, Sequence) and len(generator) != len(requests):
            raise InvalidRequest(f"{len(generator)} generators for {len(requests)} pictures: give one, or one for each")
        if latents is not None:
            self._check_latents(latents)
            if len(latents) != len(requests):
                raise InvalidRequest(f"latents for {len(latents)} pictures were given, this call makes {len(requests)}")
        for request in requests:
            if request.noise == "generator" and generator is None:
                raise InvalidRequest("noise 'generator' needs the generator the picture was made with: pass it")
        planned = self._planned(requests)
        _ = self.model.sha256  # here an unreadable file costs no finished picture
        job = Job(
            model=self.model,
            planned=planned,
            batch_size=self.batch_size,
            pictures=pictures,
            generator=generator,
            latents=latents,
            conditioning=conditioning,
            output=output,
            policy=self.safety,
            checker=None if output == "latents" else self._choose_checker(),
            watermark=self.watermark,
            preview=self.preview,
            on_progress=on_progress,
            cancellation=cancellation or Cancellation(),
        )
        aside = memory_set_aside(self.model, self._batches(planned))
        with aside, torch.inference_mode(), memory_errors(planned[0].request):
            made = job.run()
        return replace(made, timings={**made.timings, "total": time.perf_counter() - started})

    def stream(
        self, prompt: str | Request | Sequence[str | Request], **options: Any
    ) -> Iterator[Progress | Generation]:
        """Make pictures as `generate`, an iterator over its progress; the `Generation` comes last. Closing it stops the
        work."""
        events: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        cancellation = options.pop("cancellation", None) or Cancellation()
        with ThreadPoolExecutor(1, thread_name_prefix="sfumato-stream") as pool:
            future = pool.submit(self.generate, prompt, on_progress=events.put, cancellation=cancellation, **options)
            future.add_done_callback(lambda _: events.put(None))
            try:
                while (event := events.get()) is not None:
                    yield event
            finally:
                # Whatever stopped the caller (Ctrl-C too), the pool waits for its thread. A caller's own cancellation
                # stays as it was once the work is done.
                if not future.done():
                    cancellation.cancel()
            yield future.result()

    @torch.inference_mode()
    def encode_prompt(self, prompt: str, negative_prompt: str = "", **fields: Any) -> Conditioning:
        """The contexts a prompt gives, (1, T, C) each: the negative prompt's, then one a condition."""
        return encode_request(self.model, Request(prompt=prompt, negative_prompt=negative_prompt, **fields))

    @torch.inference_mode()
    def encode_image(self, image: Picture, *, seed: int = 0) -> Tensor:
        """Scaled latents (1, C, h, w) of a picture, a sample of the autoencoder's posterior."""
        picture, _ = opened(image)
        width, height = fitting_size(picture.size, max(8, self.model.autoencoder.config.factor))
        draw, _ = noise_source([Request(prompt="", seed=seed)], None)
        return encode(self.model, picture_to_tensor(picture, width, height), draw)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) → pictures (B, 3, H, W) float32, about [-1, 1]. Raises `InvalidRequest`."""
        self._check_latents(latents)
        return decode(self.model, latents.to(self.model.device))

    def preview(self, latents: Tensor) -> Image.Image:
        """A small picture of scaled latents (1, C, h, w), a pixel a cell; nearly free after the first. Raises
        `InvalidRequest`."""
        self._check_latents(latents)
        if len(latents) != 1:
            raise InvalidRequest(f"a preview is of one picture's latents, not of {len(latents)}")
        with self._lock:
            if self._preview is None:
                self._preview = Preview(self.model.autoencoder)
        return self._preview(latents)

    def _check_latents(self, latents: Tensor) -> None:
        check_latents(latents, self.model.autoencoder.config.latent_channels)

    def _check_names(self, fields: Mapping[str, Any]) -> None:
        """Raise `InvalidRequest` for fields that name other files than this pipeline's. A `Request` may carry other
        names: it may come from a record made elsewhere."""
        own = {"model": {self.model.name, str(self.model.path)}, "vae": {str(self.model.vae_path)}}
        for name in own.keys() & fields.keys():
            if fields[name] is not None and str(fields[name]) not in own[name]:
                raise InvalidRequest(
                    f"{name} {str(fields[name])!r} is not what this pipeline was loaded with: "
                    f"use load_pipeline({_LOADED_WITH[name].format(str(fields[name]))})"
                )

    def _planned(self, requests: Sequence[Request]) -> list[PlannedRequest]:
        """Resolve and plan requests, and say once what comes out otherwise than asked. Raises `InvalidRequest` for what
        the model or its samplers can't do."""
        with_sizes = [sized(request) for request in requests]
        planned = plan_requests(self.model, (self.resolve(request) for request, _ in with_sizes))
        notes = [note for _, note in with_sizes if note]
        notes += [
            f"sampler {one.request.sampler}: {note}" for one in planned for plan in one.plans for note in plan.notes
        ]
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                logger.warning("%s", note)
        return planned

    def _batches(self, planned: Sequence[PlannedRequest]) -> dict[Request, int]:
        """One request of each kind of batch, and how many pictures of it run together."""
        counts = Counter(batch_key(one.request) for one in planned)
        return {key: min(count, self.batch_size) for key, count in counts.items()}

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
