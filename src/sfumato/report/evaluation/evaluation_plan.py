"""What a run is to generate: every prompt in every cell of models × guidance × samplers × steps."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sfumato.errors import InvalidRequest
from sfumato.files import locked, make_folder, plain_name, write_text
from sfumato.pipeline.request import Request
from sfumato.report.evaluation.prompt_list import PromptList, read_prompts, write_prompts
from sfumato.report.evaluation.protocols import Protocol

PLAN, PROMPTS, LOCK = "plan.json", "prompts.jsonl", ".lock"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of a curve. `label` names the model in reports and files, `model` is what is loaded."""

    label: str
    model: str
    guidance_scale: float
    sampler: str
    steps: int

    @property
    def name(self) -> str:
        """The cell's folder: harmless and, within a plan, unique."""
        return f"{self.label}-g{self.guidance_scale:g}-{self.sampler}-{self.steps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All of a run. `protocol` is the one it follows but for what the fields here say."""

    protocol: str
    prompts_sha256: str
    count: int
    seed: int
    side: int | None
    profile: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    def request(self, cell: Cell, prompt: str, index: int) -> Request:
        """Picture `index` of a cell. Its seed is the prompt's, the same in every cell."""
        return Request(
            prompt=prompt,
            seed=self.seed + index,
            model=cell.model,
            guidance_scale=cell.guidance_scale,
            sampler=cell.sampler,
            steps=cell.steps,
            width=self.side,
            height=self.side,
            profile=self.profile,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"version": _VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> Self:
        """Read what `to_dict` wrote. `InvalidRequest` for another version or a damaged file."""
        if values.get("version") != _VERSION:
            raise InvalidRequest(f"{where} is of another version of sfumato: evaluate into another folder")
        try:
            given = {name: value for name, value in values.items() if name != "version"}
            cells = tuple(Cell(**cell) for cell in given.pop("cells"))
            made = cls(**{**given, "notes": tuple(given.get("notes", ()))}, cells=cells)
        except (TypeError, KeyError, AttributeError) as error:
            raise InvalidRequest(f"{where} is damaged ({error}): evaluate into another folder") from error
        for cell in made.cells:
            plain_name(cell.name, what="cell")
        return made


def make_plan(protocol: Protocol, models: Sequence[tuple[str, str]], prompts: PromptList) -> Plan:
    """The protocol's grid for some models, (label, what to load) each. `InvalidRequest` where a cell can't be made
    or two have one name."""
    cells = [
        Cell(label=label, model=model, guidance_scale=scale, sampler=sampler, steps=steps)
        for (label, model), sampler, steps, scale in itertools.product(
            models, protocol.samplers, protocol.steps, protocol.guidance_scales
        )
    ]
    names = [plain_name(cell.name, what="cell") for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidRequest(f"two cells are called {twice[0]}: give each model a label, as in --model early=PATH")
    plan = Plan(
        protocol=protocol.name,
        prompts_sha256=prompts.sha256,
        count=len(prompts.prompts),
        seed=protocol.seed,
        side=protocol.side,
        profile=protocol.profile,
        cells=tuple(cells),
        notes=protocol.notes,
    )
    for cell in cells:
        plan.request(cell, prompts.prompts[0].text, len(prompts.prompts) - 1)
    return plan


def labelled(model: str) -> tuple[str, str]:
    """Split `label=model`, or a model whose label is its file's or folder's name."""
    label, equals, rest = model.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", label):
        return label, rest
    return re.sub(r"[^\w.-]+", "-", Path(model).name) or "model", model


def start(folder: Path, plan: Plan, prompts: PromptList) -> None:
    """Put plan and prompts into the folder, or find the same there: a run goes on, it never changes.

    Raises `InvalidRequest` naming what differs, or `OutputError`. Several processes may do so at once.
    """
    make_folder(folder)
    with locked(folder / LOCK):
        if (folder / PLAN).exists():
            before = read_plan(folder)
            if before != plan:
                changed = next(
                    field.name
                    for field in dataclasses.fields(Plan)
                    if getattr(before, field.name) != getattr(plan, field.name)
                )
                raise InvalidRequest(
                    f"{folder} holds an evaluation with other {changed.replace('_', ' ')}: go on with the same, "
                    "or choose another folder"
                )
            return
        if (folder / PROMPTS).exists():
            (folder / PROMPTS).unlink()  # of a start that was stopped before its plan was written
        write_prompts(prompts, folder / PROMPTS)
        write_text(folder / PLAN, json.dumps(plan.to_dict(), ensure_ascii=False, indent=1) + "\n")


def read_plan(folder: Path) -> Plan:
    """The plan of the run in `folder`. `InvalidRequest` where there is none."""
    path = folder / PLAN
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequest(f"{folder} holds no evaluation: make its pictures with `sfumato evaluate run`") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} can't be read ({error}): evaluate into another folder") from error
    if not isinstance(values, dict):
        raise InvalidRequest(f"{path} is damaged: evaluate into another folder")
    return Plan.from_dict(values, str(path))


def read_run(folder: Path) -> tuple[Plan, PromptList]:
    """The plan and the prompts it was made for. `InvalidRequest` where the list isn't that one any more."""
    plan = read_plan(folder)
    prompts = read_prompts(folder / PROMPTS)
    if prompts.sha256 != plan.prompts_sha256:
        raise InvalidRequest(f"{folder / PROMPTS} has changed since the pictures were made: put it back")
    return plan, prompts
