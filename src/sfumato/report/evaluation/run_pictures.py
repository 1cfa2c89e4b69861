"""The pictures of a plan: each in its own file as soon as it is made, so that a run goes on where it was stopped."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.errors import InvalidRequest, OutputError
from sfumato.files import locked, write_text
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.pictures.pixels import Pixels
from sfumato.pictures.untrusted_pictures import open_picture
from sfumato.pipeline.load_pipeline import load_with
from sfumato.pipeline.pipeline import Pipeline
from sfumato.pipeline.saving import save_picture
from sfumato.progress import OnProgress, ignore
from sfumato.report.evaluation.evaluation_plan import LOCK, Cell, Plan
from sfumato.report.evaluation.prompt_list import PromptList
from sfumato.runtime import processor_name
from sfumato.train.logs.compute_log import SessionLog

PICTURES, MADE, TIMES = "pictures", "made.json", "times"

_NOTED_EVERY = 30.0  # seconds between lines for `sfumato emissions --run`: what a crash loses at most

Load = Callable[[str], Pipeline]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Every `of`-th picture, from `index` on (counted from 0): one process's part of a run. Raises `InvalidRequest` for
    an index that isn't below `of`."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise InvalidRequest(f"shard {self.index + 1}/{self.of}: the first number counts from 1 to the second")


def parse_shard(text: str) -> Shard:
    """`2/8` → the second of eight. `InvalidRequest` says how it is written."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None:
        raise InvalidRequest(f"shard {text!r}: write it as 1/4, the first of four")
    return Shard(index=int(match[1]) - 1, of=int(match[2]))


def picture_path(folder: Path, cell: Cell, index: int) -> Path:
    """Where picture `index` of a cell is."""
    return folder / PICTURES / cell.name / f"{index:06d}.png"


def missing(folder: Path, plan: Plan, cell: Cell, shard: Shard | None = None) -> list[int]:
    """The pictures of a cell (and a shard) that aren't there yet."""
    part = shard or Shard()
    return [i for i in range(part.index, plan.count, part.of) if not picture_path(folder, cell, i).exists()]


def read_pictures(folder: Path, plan: Plan, cell: Cell) -> list[Pixels]:
    """All pictures of a cell. `InvalidRequest` while some are missing."""
    absent = missing(folder, plan, cell)
    if absent:
        raise InvalidRequest(
            f"{cell.name}: {len(absent)} of {plan.count} pictures are not painted yet: run `sfumato evaluate run` again"
        )
    return [np.asarray(open_picture(picture_path(folder, cell, i))[0]) for i in range(plan.count)]


def load_for_evaluation(model: str, options: LoadOptions | None = None) -> Pipeline:
    """Load a pipeline whose pictures are judged as they are: nobody checks them, and no mark is hidden in them."""
    return load_with(options or LoadOptions(), model, safety="off", watermark=False)


def generate_missing(
    folder: Path,
    plan: Plan,
    prompts: PromptList,
    *,
    shard: Shard | None = None,
    load: Load = load_for_evaluation,
    on_progress: OnProgress = ignore,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> int:
    """Generate what isn't there yet of a shard (None: of all) and return the number of pictures made.

    Pictures depend on nothing but plan, model and machine: a run that was killed gives the same as one that wasn't.
    `on_pictures` is told of each few that are finished. `InvalidRequest` where a model isn't the one that earlier
    pictures were made with.
    """
    part = shard or Shard()
    generated = 0
    with _times(folder, part) as note:
        for model, cells in groupby(plan.cells, key=lambda cell: cell.model):
            waiting = [(cell, i) for cell in cells for i in missing(folder, plan, cell, part)]
            if not waiting:
                continue
            pipeline = load(model)
            _check_model(folder, model, pipeline)
            device = processor_name(pipeline.model.device)
            session, noted = SessionLog(folder, device=device, devices=1, step=generated), time.monotonic()
            for cell, group in groupby(waiting, key=lambda item: item[0]):
                picture_path(folder, cell, 0).parent.mkdir(parents=True, exist_ok=True)
                absent = {i for _, i in group}
                for batch in _batches(plan, part, pipeline.batch_size):
                    wanted = absent.intersection(batch)
                    if wanted:
                        took = _generate_batch(folder, plan, prompts, cell, batch, wanted, pipeline, on_progress)
                        note(cell, sorted(wanted), took)
                        generated += len(wanted)
                        on_pictures(len(wanted))
                        if time.monotonic() - noted > _NOTED_EVERY:
                            session.write(generated)
                            noted = time.monotonic()
            session.write(generated)
    return generated


def _batches(plan: Plan, part: Shard, size: int) -> Iterator[range]:
    """A shard's pictures, the same ones together however much of them is there already: neighbours in a batch change
    the last bits, so a batch of which one picture is missing is made whole."""
    for start in range(part.index, plan.count, part.of * size):
        yield range(start, min(start + part.of * size, plan.count), part.of)


def _generate_batch(
    folder: Path,
    plan: Plan,
    prompts: PromptList,
    cell: Cell,
    indices: Sequence[int],
    wanted: Collection[int],
    pipeline: Pipeline,
    on_progress: OnProgress,
) -> float:
    """Generate the pictures `indices` together and save those `wanted`. Returns the seconds it took, without saving."""
    requests = [plan.request(cell, prompts.prompts[i].text, i) for i in indices]
    started = time.perf_counter()
    made = pipeline.generate(requests, on_progress=on_progress)
    took = time.perf_counter() - started
    for i, image, record in zip(indices, made.images, made.provenance, strict=True):
        if i not in wanted:
            continue
        path = picture_path(folder, cell, i)
        try:
            save_picture(np.asarray(image), path, record)
        except OutputError:
            if not path.exists():  # another process made the same
                raise
    return took


def conditions(folder: Path) -> dict[str, Any]:
    """What each model's pictures were made with: hash, dtype, device, versions. Empty before the first picture. Raises
    `InvalidRequest` where the record can't be read."""
    path = folder / MADE
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be read ({error}): evaluate into another folder") from error
    return values if isinstance(values, dict) else {}


def seconds(folder: Path) -> dict[str, float]:
    """Seconds of generating by cell, as far as they were noted."""
    totals: dict[str, float] = {}
    for path in sorted(folder.glob(f"{TIMES}-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
                totals[values["cell"]] = totals.get(values["cell"], 0.0) + float(values["seconds"])
            except (ValueError, KeyError, TypeError):  # cut off by a crash
                continue
    return totals


def _check_model(folder: Path, model: str, pipeline: Pipeline) -> None:
    """Note what a model's pictures are made with, or compare with what was noted."""
    from sfumato.version import __version__

    loaded = pipeline.model
    now = {
        "model_sha256": loaded.sha256,
        "engine": pipeline.engine,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "batch_size": pipeline.batch_size,
        "sfumato": __version__,
    }
    with locked(folder / LOCK):
        known: Mapping[str, Any] = conditions(folder)
        if model not in known:
            write_text(folder / MADE, json.dumps({**known, model: now}, indent=1) + "\n", overwrite=True)
            return
    for name, value in now.items():
        if known[model].get(name) != value:
            raise InvalidRequest(
                f"{folder} has pictures of {model!r} made with {name.replace('_', ' ')} {known[model].get(name)}, "
                f"now it is {value}: go on as before, or evaluate into another folder"
            )


@contextmanager
def _times(folder: Path, shard: Shard) -> Iterator[Callable[[Cell, Sequence[int], float], None]]:
    """Appends how long pictures took, a line a batch."""
    with (folder / f"{TIMES}-{shard.index + 1}-of-{shard.of}.jsonl").open("a", encoding="utf-8") as file:

        def note(cell: Cell, indices: Sequence[int], took: float) -> None:
            file.write(json.dumps({"cell": cell.name, "pictures": list(indices), "seconds": round(took, 4)}) + "\n")
            file.flush()

        yield note
