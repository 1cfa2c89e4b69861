"""Whether and from where a run goes on: its newest checkpoint, and the options that must not have changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import InvalidConfig
from sfumato.files import write_text
from sfumato.toml_files import from_values, to_toml, to_values
from sfumato.train.checkpoints import Checkpoints, Saved, read_checkpoint
from sfumato.train.distributed.process_group import World
from sfumato.train.run_config import FREE
from sfumato.train.run_folder import CONFIG
from sfumato.train.task import TaskConfig
from sfumato.train.train_state import TrainState

logger = logging.getLogger("sfumato")


def newest_checkpoint(checkpoints: Checkpoints, world: World) -> Saved | None:
    """The checkpoint that the main process finds, read by all; None where there is none."""
    saved = checkpoints.newest() if world.is_main else None
    path = world.broadcast(saved.path if saved else None)
    return saved if saved or path is None else read_checkpoint(path)


def resume(state: TrainState, saved: Saved, config: TaskConfig, folder: Path) -> None:
    """Put a checkpoint of the run in `folder` into `state`. `InvalidConfig` where it was begun with another config,
    `CheckpointError` where it is another model's."""
    # an option that the run's version didn't have yet had the effect of today's default
    changed = _changes(to_values(from_values(type(config), saved.config)), to_values(config))
    if changed:
        raise InvalidConfig(
            f"{saved.path} is of a run with another {changed[0]}: give the config it began with "
            f"({folder / CONFIG}), or another folder"
        )
    state.restore(saved.tensors, saved.step)
    logger.info("going on after step %d, from %s", saved.step, saved.path)


def note_config(config: TaskConfig, folder: Path) -> None:
    """Write config.toml, unless it is there and says the same. `OutputError` where that can't be."""
    path, text = folder / CONFIG, to_toml(config)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text, overwrite=True)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Names of the options that differ and matter."""
    found: list[str] = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _changes(before, after, f"{where}{name}.")
        elif before != after and not (where == "run." and name in FREE):
            found.append(where + name)
    return found
