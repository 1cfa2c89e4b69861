"""`sfumato train recipe` for the stages of pocket, which find their pictures, words and latents themselves."""

from __future__ import annotations

import os
from contextlib import suppress

from sfumato.cli.terminal.output_lines import write_line, write_note
from sfumato.cli.train.train_options import ALL, RunOptions
from sfumato.errors import Cancelled, InvalidRequest, PeerFailed

_ENCODED_ON_GPU = 196_608  # scenes, that many more than on a CPU, which sees fewer of them


def train_pocket(recipe_name: str, stage: str, options: RunOptions, start: str | None) -> None:
    """Run one stage of a recipe of pocket, or all, and publish the model. `InvalidRequest` without data,
    `Cancelled` where it was stopped before the end, `PeerFailed` in any but the first of several processes."""
    import torch

    from sfumato.cli.train.train_progress import is_first_process, training_progress
    from sfumato.cli.train.train_run import write_card_of_run
    from sfumato.modelfiles.model_library import resolve
    from sfumato.pocket.training.pocket_recipes import POCKET_RECIPES, SHARES
    from sfumato.pocket.training.pocket_stages import Pocket
    from sfumato.progress import Cancellation
    from sfumato.runtime import resolve_device
    from sfumato.train.run_folder import MODEL
    from sfumato.train.trainer import stopping_on_signals

    if options.data is None:
        raise InvalidRequest("pocket is trained on the emoji set: give its shards' folder as --data")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        refusal = f"{recipe_name} draws and encodes its pictures in one process: start it without torchrun"
        raise InvalidRequest(refusal) if is_first_process() else PeerFailed(refusal)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    cancellation = Cancellation()
    shares = SHARES.get(recipe_name)
    with stopping_on_signals(cancellation), training_progress() as on_progress:
        pocket = Pocket(
            emoji=options.data,
            folder=options.out,
            start=None if start is None else resolve(start).path,
            recipe=POCKET_RECIPES[recipe_name],
            device=resolve_device(options.device),
            processes=1 if shares is None else os.cpu_count() or 1,
            encoded=Pocket.encoded if shares is None else _ENCODED_ON_GPU,
            cancellation=cancellation,
            on_progress=on_progress,
        )
        finished = False
        with suppress(Cancelled):  # while pictures are drawn or encoded; between steps it ends without
            if stage == ALL:
                finished = pocket.train_all(minutes=options.minutes, shares=shares)
            else:
                finished = pocket.train(stage, minutes=options.minutes).finished
    if stage == ALL and pocket.has_diffusion:
        run = pocket.export(options.out / MODEL, overwrite=True)
        write_card_of_run(run, options.out / MODEL)
    if not finished:
        again = (
            f"go on with: sfumato train recipe {recipe_name} --stage {stage} --data {options.data} --out {options.out}"
        )
        if cancellation.requested:
            raise Cancelled(f"stopped before the end; {again}")
        write_note(f"the time is over before the end, with a checkpoint; {again}")
    write_line(str(options.out / (stage if stage != ALL else MODEL if pocket.has_diffusion else "")))
