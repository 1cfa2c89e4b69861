"""The flags several commands share, as data."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, get_args

import typer

from sfumato.diffusion.profiles import PROFILES
from sfumato.diffusion.sampler_info import SAMPLERS, SPACINGS
from sfumato.engines.names import ENGINES, MEMORY_MODES, TILINGS
from sfumato.pipeline.presets import PRESET, PRESETS
from sfumato.pipeline.request import LongPrompts, Noise, PromptSyntax

PICTURE, SAMPLING, IMAGES, MODEL, OUTPUT = "Picture", "Sampling", "From a picture", "Model", "Output"

PANELS = (PICTURE, SAMPLING, IMAGES, MODEL, OUTPUT)

picture_option = partial(typer.Option, rich_help_panel=PICTURE)
images_option = partial(typer.Option, rich_help_panel=IMAGES)
model_option = partial(typer.Option, rich_help_panel=MODEL)
output_option = partial(typer.Option, rich_help_panel=OUTPUT)

SafetyPolicy = Literal["off", "flag", "blur", "block"]
SAFETY_POLICIES: tuple[SafetyPolicy, ...] = get_args(SafetyPolicy)

FlagValues = Mapping[str, str]
"""Flags that were on the command line: name in snake case → text ("true" or "false" for switches)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag. `default` is what help says when it isn't given; a `switch` takes no value and has a `--no-` twin."""

    name: str
    help: str
    panel: str
    metavar: str = "TEXT"
    default: str = ""
    short: str | None = None
    choices: Collection[str] = ()
    switch: bool = False

    def parameter(self) -> inspect.Parameter:
        """What Typer reads: an option that is None unless given."""
        long = "--" + self.name.replace("_", "-")
        names = [f"{long}/--no-{long[2:]}" if self.switch else long, *([self.short] if self.short else [])]
        option = typer.Option(
            *names,
            help=f"{self.help} [dim]\\[{self.default}][/dim]" if self.default else self.help,
            metavar="" if self.switch else self.metavar,
            rich_help_panel=self.panel,
            autocompletion=self._complete if self.choices else None,
        )
        kind = bool | None if self.switch else str | None
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
        )

    def _complete(self, incomplete: str) -> list[str]:
        return [choice for choice in self.choices if choice.startswith(incomplete)]


REQUEST_FLAGS = (
    Flag(
        name=PRESET,
        help=f"{', '.join(PRESETS)}: how much likeness to give up for time; other flags win.",
        panel=PICTURE,
        metavar="NAME",
        default="exact",
        choices=tuple(PRESETS),
    ),
    Flag(name="negative_prompt", short="-n", help="What the picture should not show.", panel=PICTURE),
    Flag(
        name="seed",
        help='The first picture\'s seed; the next ones count up. "random" draws one.',
        panel=PICTURE,
        metavar="N",
        default="0",
    ),
    Flag(name="width", short="-W", help="Pixels, a multiple of 8.", panel=PICTURE, metavar="PX", default="the model's"),
    Flag(
        name="height", short="-H", help="Pixels, a multiple of 8.", panel=PICTURE, metavar="PX", default="the model's"
    ),
    Flag(
        name="guidance_scale",
        short="-g",
        help="How closely to follow the prompt; 1 is no guidance.",
        panel=PICTURE,
        metavar="X",
        default="the model's, mostly 7.5",
    ),
    Flag(
        name="guidance_rescale",
        help="Against washed-out colours at high guidance, 0 to 1.",
        panel=PICTURE,
        metavar="X",
        default="0",
    ),
    Flag(name="guidance_interval", help="Guide only for σ in this range.", panel=PICTURE, metavar="LOW:HIGH"),
    Flag(
        name="prompt_syntax",
        help="plain, or weighted: (word:1.2), \\[word], AND, BREAK.",
        panel=PICTURE,
        metavar="NAME",
        default="plain",
        choices=get_args(PromptSyntax),
    ),
    Flag(
        name="long_prompts",
        help="Cut what doesn't fit and warn, or chunk it.",
        panel=PICTURE,
        metavar="NAME",
        default="warn",
        choices=get_args(LongPrompts),
    ),
    Flag(name="clip_skip", help="Text encoder layers to leave out.", panel=PICTURE, metavar="N", default="0"),
    Flag(name="variation_seed", help="Mix in another seed's noise…", panel=PICTURE, metavar="N"),
    Flag(name="variation_strength", help="…by this much, 0 to 1.", panel=PICTURE, metavar="X", default="0"),
    Flag(
        name="sampler",
        short="-s",
        help="See [bold]sfumato samplers[/bold].",
        panel=SAMPLING,
        metavar="NAME",
        default="plms",
        choices=tuple(SAMPLERS),
    ),
    Flag(name="steps", short="-S", help="1 to 1000.", panel=SAMPLING, metavar="N", default="50"),
    Flag(
        name="spacing",
        help="How the steps are spread.",
        panel=SAMPLING,
        metavar="NAME",
        default="the profile's",
        choices=tuple(SPACINGS),
    ),
    Flag(
        name="profile",
        help="Whose conventions: same seed, same picture as there.",
        panel=SAMPLING,
        metavar="NAME",
        default="diffusers",
        choices=tuple(PROFILES),
    ),
    Flag(
        name="noise",
        help="Where the seed's numbers come from.",
        panel=SAMPLING,
        metavar="NAME",
        default="cpu",
        choices=get_args(Noise),
    ),
    Flag(name="eta", help="DDIM's noise, 0 to 1.", panel=SAMPLING, metavar="X", default="0"),
    Flag(
        name="cache_interval",
        help="Run all of the UNet every Nth call only (DeepCache).",
        panel=SAMPLING,
        metavar="N",
        default="1",
    ),
    Flag(name="cache_depth", help="Outer layers the other calls still run.", panel=SAMPLING, metavar="N", default="1"),
    Flag(
        name="token_merging",
        help="Share of tokens merged in the finest attention, 0 to 0.75.",
        panel=SAMPLING,
        metavar="X",
        default="0",
    ),
    Flag(name="rtol", help="Relative tolerance of dpm_adaptive.", panel=SAMPLING, metavar="X", default="0.05"),
    Flag(name="atol", help="Absolute tolerance of dpm_adaptive.", panel=SAMPLING, metavar="X", default="0.0078"),
    Flag(name="init_image", short="-i", help="Start from this picture.", panel=IMAGES, metavar="FILE"),
    Flag(name="strength", help="How much of it to change, 0 to 1.", panel=IMAGES, metavar="X", default="0.75"),
    Flag(name="mask", help="Repaint only where this picture is white.", panel=IMAGES, metavar="FILE"),
    Flag(name="upscale", help="Enlarge, and go over it again: 1 to 8.", panel=IMAGES, metavar="X", default="1"),
    Flag(name="upscale_strength", help="How much that changes, 0 to 1.", panel=IMAGES, metavar="X", default="0.6"),
    Flag(name="model", short="-m", help="Name, path or Hub id.", panel=MODEL, metavar="MODEL", default="pocket"),
    Flag(name="vae", help="Another autoencoder: file or folder.", panel=MODEL, metavar="PATH"),
)

LOAD_FLAGS = (
    Flag(name="device", help="auto, cpu, cuda, cuda:N, mps.", panel=MODEL, metavar="NAME", default="auto"),
    Flag(name="dtype", help="auto, float32, float16, bfloat16.", panel=MODEL, metavar="NAME", default="auto"),
    Flag(
        name="engine",
        help=f"What runs the networks: {', '.join(ENGINES)}.",
        panel=MODEL,
        metavar="NAME",
        default="auto",
        choices=tuple(ENGINES),
    ),
    Flag(
        name="memory",
        help="auto; lean or low read weights layer by layer from their file.",
        panel=MODEL,
        metavar="NAME",
        default="auto",
        choices=tuple(MEMORY_MODES),
    ),
    Flag(
        name="vae_tiling",
        help=f"How large pictures pass the VAE: {', '.join(TILINGS)}.",
        panel=MODEL,
        metavar="NAME",
        default="the memory mode's",
        choices=tuple(TILINGS),
    ),
    Flag(name="variant", help='A folder\'s other files, such as "fp16".', panel=MODEL, metavar="NAME"),
    Flag(name="revision", help="Branch, tag or commit of a Hub model.", panel=MODEL, metavar="NAME"),
    Flag(name="ema", help="A checkpoint's averaged weights.", panel=MODEL, default="ema", switch=True),
    Flag(name="batch_size", help="Pictures that run together.", panel=MODEL, metavar="N", default="1 on a CPU, else 8"),
    Flag(
        name="deterministic",
        help="One picture at a time, so that none depends on its neighbours' rounding.",
        panel=MODEL,
        switch=True,
    ),
    Flag(
        name="threads",
        help="Of the processor; the last bits depend on it.",
        panel=MODEL,
        metavar="N",
        default="one a core",
    ),
    Flag(name="offline", help="Never use the network.", panel=MODEL, switch=True),
)

RUN_FLAGS = (
    *LOAD_FLAGS,
    Flag(
        name="safety",
        help="off, flag, blur or block what the checker finds.",
        panel=OUTPUT,
        metavar="NAME",
        default="flag",
        choices=SAFETY_POLICIES,
    ),
    Flag(
        name="watermark",
        help="The invisible mark that a program made it.",
        panel=OUTPUT,
        default="watermark",
        switch=True,
    ),
)

Out = Annotated[
    str | None,
    output_option("--out", "-o", metavar="PATH", help="The file's name, or a folder. [dim]\\[pictures][/dim]"),
]
Json = Annotated[bool, output_option("--json", metavar="", help="One JSON document on stdout.")]
Overwrite = Annotated[bool, output_option("--overwrite", metavar="", help="Replace files.")]
