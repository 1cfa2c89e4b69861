"""The arguments and options that the training commands share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from sfumato.choices import check_choice
from sfumato.cli.terminal.output_lines import write_line
from sfumato.errors import InvalidConfig, InvalidRequest

T = TypeVar("T")

ALL = "all"  # stages of a recipe, one after the other
run_option = partial(typer.Option, rich_help_panel="Run")
_before = partial(typer.Option, rich_help_panel="Before the run")

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="CONFIG.toml", help="Options. A run that goes on has its own.")
]
Start = Annotated[str | None, run_option(metavar="RUN|MODEL", help="First weights.")]
TokenizerOf = Annotated[
    str | None,
    run_option(
        "--tokenizer", metavar="MODEL", help="A model, or a folder with vocab.json and merges.txt. [dim]\\[v1's][/dim]"
    ),
]
PrintConfig = Annotated[
    str | None,
    _before("--print-config", metavar="NAME", help="Write a config to begin with: v1, small; of clip, retriever too."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is conducted, whatever it trains."""

    data: Annotated[
        Path | None,
        run_option(metavar="FOLDER", help="Pictures with captions, WebDataset shards, or the emoji set's shards."),
    ] = None
    out: Annotated[Path, run_option("--out", "-o", metavar="RUN", help="Its folder.", show_default=True)] = Path("run")
    minutes: Annotated[
        float | None, run_option(metavar="N", help="Stop after so many, with a checkpoint.", min=0.0)
    ] = None
    device: Annotated[str, run_option(metavar="NAME", help="auto, cpu, cuda, cuda:N, mps.", show_default=True)] = "auto"
    threads: Annotated[int | None, run_option(metavar="N", help="Of the CPU. [dim]\\[torch's][/dim]", min=1)] = None
    as_json: Annotated[
        bool, run_option("--json", metavar="", help="One JSON document on stdout.", show_default=True)
    ] = False

    def again(self, command: str) -> str:
        """The command line that goes on with the run."""
        words = ["sfumato", "train", *command.split(), "--data", str(self.data), "--out", str(self.out)]
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunOptions:
    """What is known of the machines that a run is planned for."""

    dry_run: Annotated[
        bool, _before("--dry-run", metavar="", help="Say what it would take, and train nothing.", show_default=True)
    ] = False
    images_per_second: Annotated[
        float | None,
        _before(metavar="X", help="Of a device. [dim]\\[measured here, if the model is small][/dim]", min=1e-9),
    ] = None
    devices: Annotated[int, _before(metavar="N", help="How many.", min=1, show_default=True)] = 1
    price: Annotated[float | None, _before(metavar="X", help="A device and hour.", min=0.0)] = None
    hardware: Annotated[str | None, _before(metavar="NAME", help="Device, as 'A100 SXM4 40GB'.")] = None
    watts: Annotated[float | None, _before(metavar="W", help="A device's power.")] = None
    region: Annotated[str | None, _before(metavar="NAME", help="Its grid, as aws/us-east-1.")] = None
    intensity: Annotated[float | None, _before(metavar="KG", help="The grid's kg CO2eq a kWh, if known.")] = None
    pue: Annotated[float | None, _before(metavar="X", help="Energy of the data centre over its computers'.")] = None


def chosen_preset(presets: Mapping[str, T], name: str) -> T:
    """The config of that name."""
    check_choice("print-config", name, tuple(presets))
    return presets[name]


def write_config(config: object) -> None:
    """The config with the documentation of every option, on stdout."""
    from sfumato.toml_files import to_toml

    for line in to_toml(config).rstrip().split("\n"):
        write_line(line)


def given_config(kind: type[T], file: Path | None, out: Path, command: str) -> T:
    """The config in the file, or the one that the run in `out` was begun with. Raises `InvalidConfig` where there is
    neither."""
    from sfumato.toml_files import read_config
    from sfumato.train.run_folder import CONFIG, is_run

    if file is None and not is_run(out):
        raise InvalidConfig(
            f"no CONFIG.toml was given, and {out} has none: write one with "
            f"`sfumato train {command} --print-config small`"
        )
    return read_config(kind, file or out / CONFIG)


def needed_data(data: Path | None) -> Path:
    """The folder to learn from. Raises `InvalidRequest` where none is given."""
    if data is None:
        raise InvalidRequest("there is nothing to learn from: give --data FOLDER with pictures and captions, or shards")
    return data
