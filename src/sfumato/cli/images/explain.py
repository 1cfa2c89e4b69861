"""`sfumato explain` and `sfumato samplers`: what a choice means, without running it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sfumato.cli.options.flags import REQUEST_FLAGS, FlagValues, Json
from sfumato.cli.options.option_groups import with_options
from sfumato.cli.options.settings import read_settings
from sfumato.cli.terminal.output_lines import facts, stdout_console, table, write_json, write_line
from sfumato.diffusion.sampler_info import SAMPLERS, SPACINGS
from sfumato.pipeline.presets import PRESET

if TYPE_CHECKING:
    from sfumato.diffusion.explanation import Choice, Explanation

_FLAGS = tuple(flag for flag in REQUEST_FLAGS if flag.name in (PRESET, "sampler", "steps", "spacing", "profile"))
_LIST_UP_TO = 60  # points; of longer schedules the ends are shown
_ENDS = 20


@with_options(given=_FLAGS)
def explain(given: FlagValues, as_json: Json = False) -> None:
    """Say what a sampler, steps, spacing and profile do: timesteps, sigmas, UNet calls, and each profile's way.

    sfumato explain --sampler plms --steps 7
    """
    from sfumato.diffusion.explanation import explain as describe
    from sfumato.diffusion.schedule import NoiseSchedule

    request = read_settings(given).request("")
    explained = describe(
        NoiseSchedule(), sampler=request.sampler, steps=request.steps, spacing=request.spacing, profile=request.profile
    )
    if as_json:
        write_json(_document(explained))
    else:
        _write(explained, request.steps)


def samplers(as_json: Json = False) -> None:
    """List the samplers: order, UNet calls, noise, and where each comes from."""
    if as_json:
        facts_of = [dataclasses.asdict(info) | {"calls_text": info.calls_text} for info in SAMPLERS.values()]
        write_json({"samplers": facts_of, "spacings": dict(SPACINGS)})
        return
    listed = table("sampler", "order", "calls", "noise", "what it is")
    for info in SAMPLERS.values():
        noise = "with eta" if info.takes_eta else "" if info.noise == "none" else info.noise
        calls = info.calls_text if info.takes_steps else "adaptive"
        listed.add_row(f"[bold cyan]{info.name}[/]", str(info.order), calls, noise, info.description)
    spacings = table("spacing", "what it is")
    for name, description in SPACINGS.items():
        spacings.add_row(f"[bold cyan]{name}[/]", description)
    console = stdout_console()
    console.print(listed, spacings)


def _write(explained: Explanation, steps: int) -> None:
    info, chosen = explained.info, explained.chosen
    schedule = chosen.schedule
    console = stdout_console()
    console.print(
        facts(
            {
                "sampler": f"{info.name}: {info.description}",
                "source": info.source,
                "order": info.order,
                "noise": "drawn while it runs" if info.stochastic else "with eta" if info.takes_eta else "none",
                "profile": chosen.profile + ("" if chosen.native else " (that program doesn't have it: our extension)"),
                "spacing": f"{schedule.spacing}: {SPACINGS[schedule.spacing]}",
                "steps": chosen.steps if chosen.steps == steps else f"{chosen.steps}, for {steps} asked for",
                "UNet calls": info.calls_text if chosen.model_calls is None else chosen.model_calls,
            }
        )
    )
    if info.takes_steps:
        _write_points(chosen)
    for note in chosen.schedule.notes:
        write_line(f"Note: {note}")
    profiles = table("profile", "spacing", "steps", "UNet calls", "first σ", "last σ", "")
    for choice in explained.profiles:
        sigmas = choice.schedule.sigmas
        profiles.add_row(
            f"[bold cyan]{choice.profile}[/]",
            choice.schedule.spacing,
            str(choice.steps) if info.takes_steps else "–",
            "–" if choice.model_calls is None else str(choice.model_calls),
            f"{sigmas[0]:.4f}",
            f"{sigmas[-1]:.4f}",
            "" if choice.native else "[dim]our extension[/]",
        )
    console.print(profiles)
    refused = [(spacing, reason) for sampler, spacing, reason in explained.refused if sampler == info.name]
    if refused:
        names = ", ".join(spacing for spacing, _ in refused)
        write_line(f"Can't use {names}: {refused[0][1]}")


def _write_points(chosen: Choice) -> None:
    schedule = chosen.schedule
    points = table("step", "timestep", "σ", "σ after")
    count = len(schedule.points)
    for i, (t, sigma, after) in enumerate(
        zip(schedule.timesteps, schedule.sigmas, schedule.sigmas[1:], strict=False), start=1
    ):
        if count <= _LIST_UP_TO or i <= _ENDS or i > count - _ENDS:
            points.add_row(str(i), f"{t:g}", f"{sigma:.4f}", f"{after:.4f}")
        elif i == _ENDS + 1:
            points.add_row("…", "", "", "")
    stdout_console().print(points)


def _document(explained: Explanation) -> dict[str, Any]:
    return {
        "sampler": dataclasses.asdict(explained.info),
        "chosen": _choice(explained.chosen),
        "profiles": [_choice(choice) for choice in explained.profiles],
        "refused": [
            {"sampler": sampler, "spacing": spacing, "reason": reason} for sampler, spacing, reason in explained.refused
        ],
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "profile": choice.profile,
        "native": choice.native,
        "spacing": choice.schedule.spacing,
        "steps": choice.steps,
        "unet_calls": choice.model_calls,
        "timesteps": list(choice.schedule.timesteps),
        "sigmas": list(choice.schedule.sigmas),
        "notes": list(choice.schedule.notes),
    }
