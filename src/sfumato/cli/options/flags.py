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


_picture = partial(Flag, panel=PICTURE)
_sampling = partial(Flag, panel=SAMPLING)
_image = partial(Flag, panel=IMAGES)
_model = partial(Flag, panel=MODEL)
_output = partial(Flag, panel=OUTPUT)

REQUEST_FLAGS = (
    _picture(
        name=PRESET,
        help=f"{', '.join(PRESETS)}: how much likeness to give up for time; other flags win.",
        metavar="NAME",
        default="exact",
        choices=tuple(PRESETS),
    ),
    _picture(name="negative_prompt", short="-n", help="What the picture should not show."),
    _picture(
        name="seed",
        help='The first picture\'s seed; the next ones count up. "random" draws one.',
        metavar="N",
        default="0",
    ),
    _picture(name="width", short="-W", help="Pixels, a multiple of 8.", metavar="PX", default="the model's"),
    _picture(name="height", short="-H", help="Pixels, a multiple of 8.", metavar="PX", default="the model's"),
    _picture(
        name="guidance_scale",
        short="-g",
        help="How closely to follow the prompt; 1 is no guidance.",
        metavar="X",
        default="the model's, mostly 7.5",
    ),
    _picture(
        name="guidance_rescale", help="Against washed-out colours at high guidance, 0 to 1.", metavar="X", default="0"
    ),
    _picture(name="guidance_interval", help="Guide only for σ in this range.", metavar="LOW:HIGH"),
    _picture(
        name="prompt_syntax",
        help="plain, or weighted: (word:1.2), \\[word], AND, BREAK.",
        metavar="NAME",
        default="plain",
        choices=get_args(PromptSyntax),
    ),
    _picture(
        name="long_prompts",
        help="Cut what doesn't fit and warn, or chunk it.",
        metavar="NAME",
        default="warn",
        choices=get_args(LongPrompts),
    ),
    _picture(name="clip_skip", help="Text encoder layers to leave out.", metavar="N", default="0"),
    _picture(name="variation_seed", help="Mix in another seed's noise…", metavar="N"),
    _picture(name="variation_strength", help="…by this much, 0 to 1.", metavar="X", default="0"),
    _sampling(
        name="sampler",
        short="-s",
        help="See [bold]sfumato samplers[/bold].",
        metavar="NAME",
        default="plms",
        choices=tuple(SAMPLERS),
    ),
    _sampling(name="steps", short="-S", help="1 to 1000.", metavar="N", default="50"),
    _sampling(
        name="spacing",
        help="How the steps are spread.",
        metavar="NAME",
        default="the profile's",
        choices=tuple(SPACINGS),
    ),
    _sampling(
        name="profile",
        help="Whose conventions: same seed, same picture as there.",
        metavar="NAME",
        default="diffusers",
        choices=tuple(PROFILES),
    ),
    _sampling(
        name="noise", help="Where the seed's numbers come from.", metavar="NAME", default="cpu", choices=get_args(Noise)
    ),
    _sampling(name="eta", help="DDIM's noise, 0 to 1.", metavar="X", default="0"),
    _sampling(
        name="cache_interval", help="Run all of the UNet every Nth call only (DeepCache).", metavar="N", default="1"
    ),
    _sampling(name="cache_depth", help="Outer layers the other calls still run.", metavar="N", default="1"),
    _sampling(
        name="token_merging",
        help="Share of tokens merged in the finest attention, 0 to 0.75.",
        metavar="X",
        default="0",
    ),
    _sampling(name="rtol", help="Relative tolerance of dpm_adaptive.", metavar="X", default="0.05"),
    _sampling(name="atol", help="Absolute tolerance of dpm_adaptive.", metavar="X", default="0.0078"),
    _image(name="init_image", short="-i", help="Start from this picture.", metavar="FILE"),
    _image(name="strength", help="How much of it to change, 0 to 1.", metavar="X", default="0.75"),
    _image(name="mask", help="Repaint only where this picture is white.", metavar="FILE"),
    _image(name="upscale", help="Enlarge, and go over it again: 1 to 8.", metavar="X", default="1"),
    _image(name="upscale_strength", help="How much that changes, 0 to 1.", metavar="X", default="0.6"),
    _model(name="model", short="-m", help="Name, path or Hub id.", metavar="MODEL", default="pocket"),
    _model(name="vae", help="Another autoencoder: file or folder.", metavar="PATH"),
)

LOAD_FLAGS = (
    _model(name="device", help="auto, cpu, cuda, cuda:N, mps.", metavar="NAME", default="auto"),
    _model(name="dtype", help="auto, float32, float16, bfloat16.", metavar="NAME", default="auto"),
    _model(
        name="engine",
        help=f"What runs the networks: {', '.join(ENGINES)}.",
        metavar="NAME",
        default="auto",
        choices=tuple(ENGINES),
    ),
    _model(
        name="memory",
        help="auto; lean or low read weights layer by layer from their file.",
        metavar="NAME",
        default="auto",
        choices=tuple(MEMORY_MODES),
    ),
    _model(
        name="vae_tiling",
        help=f"How large pictures pass the VAE: {', '.join(TILINGS)}.",
        metavar="NAME",
        default="the memory mode's",
        choices=tuple(TILINGS),
    ),
    _model(name="variant", help='A folder\'s other files, such as "fp16".', metavar="NAME"),
    _model(name="revision", help="Branch, tag or commit of a Hub model.", metavar="NAME"),
    _model(name="ema", help="A checkpoint's averaged weights.", default="ema", switch=True),
    _model(name="batch_size", help="Pictures that run together.", metavar="N", default="1 on a CPU, else 8"),
    _model(
        name="deterministic",
        help="One picture at a time, so that none depends on its neighbours' rounding.",
        switch=True,
    ),
    _model(name="threads", help="Of the processor; the last bits depend on it.", metavar="N", default="one a core"),
    _model(name="offline", help="Never use the network.", switch=True),
)

RUN_FLAGS = (
    *LOAD_FLAGS,
    _output(
        name="safety",
        help="off, flag, blur or block what the checker finds.",
        metavar="NAME",
        default="flag",
        choices=SAFETY_POLICIES,
    ),
    _output(name="watermark", help="The invisible mark that a program made it.", default="watermark", switch=True),
)

Out = Annotated[
    str | None,
    output_option("--out", "-o", metavar="PATH", help="The file's name, or a folder. [dim]\\[pictures][/dim]"),
]
Json = Annotated[bool, output_option("--json", metavar="", help="One JSON document on stdout.")]
Overwrite = Annotated[bool, output_option("--overwrite", metavar="", help="Replace files.")]
