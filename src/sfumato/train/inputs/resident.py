"""Whole data sets on the device: for those that fit, where loading samples one by one would be slower than learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfumato.data.rendered import Rendered
from sfumato.data.samples import Dataset
from sfumato.errors import DataError
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.encoding.encode_dataset import tokenizer_hash
from sfumato.train.inputs.caption_dropout import token_window
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.encoded_latents import LatentDataset, StoredLatents
from sfumato.train.inputs.image_tensors import to_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentLatents:
    """Posteriors of N pictures and the token windows of their captions.

    `mean` and `logvar` (N, C, h, w) float16; the windows of picture i are `tokens[first[i]:first[i + 1]]` (K, T), and
    the last one is the empty caption's.
    """

    mean: Tensor
    logvar: Tensor
    tokens: Tensor
    first: Tensor

    def drawn(self, samples: Tensor, draws: Draws, dropout: float) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) float32, unscaled, and token windows (B, T) of one caption each, or, with probability
        `dropout` and where there is none, of the empty one."""
        noise = draws.normal("posterior", self.mean.shape[1:])
        latents = self.mean[samples].float() + torch.exp(0.5 * self.logvar[samples].float()) * noise
        first, count = self.first[samples], self.first[samples + 1] - self.first[samples]
        chosen = first + (draws.uniform("caption") * count).long()
        empty = (draws.uniform("caption dropout") < dropout) | (count == 0)
        return latents, self.tokens[torch.where(empty, len(self.tokens) - 1, chosen)].long()


def resident_latents(dataset: LatentDataset, tokenizer: Tokenizer, device: torch.device) -> ResidentLatents:
    """All of `dataset` on `device`. `DataError` where that has no room for it."""
    stored = _stored(dataset, tokenizer)
    mean, logvar, tokens, counts = stored if stored is not None else _gathered(dataset, tokenizer)
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    empty = token_window(tokenizer, "").to(tokens.dtype)
    parts = (mean, logvar, torch.cat([tokens, empty[None]]), first)
    on_device = _moved(parts, device)
    return ResidentLatents(mean=on_device[0], logvar=on_device[1], tokens=on_device[2], first=on_device[3])


def resident_pictures(dataset: Dataset, device: torch.device) -> Tensor:
    """All pictures, which must be of one size (`DataError`), as bytes (N, H, W, 3) on `device`."""
    if isinstance(dataset, Rendered):
        return _moved((torch.from_numpy(np.array(dataset.pixels)),), device)[0]
    pictures = [to_bytes(dataset.sample(i).picture).permute(1, 2, 0) for i in range(len(dataset))]
    if len({picture.shape for picture in pictures}) != 1:
        raise DataError("run.resident needs pictures of one size: set it to false, or prepare them so")
    return _moved((torch.stack(pictures),), device)[0]


def cropped(pictures: Tensor, samples: Tensor, side: int, draws: Draws) -> Tensor:
    """A random square of each sample (B, 3, side, side), in channels_last. `DataError` where the pictures (N, H, W, 3)
    are smaller."""
    spare = [size - side for size in pictures.shape[1:3]]
    if min(spare) < 0:
        raise DataError(f"pictures of {pictures.shape[2]}×{pictures.shape[1]} are smaller than crop = {side}: lower it")
    corner = draws.uniform("crop", (2,)) * torch.tensor([room + 1 for room in spare], device=pictures.device)
    rows, columns = (start[:, None] + torch.arange(side, device=pictures.device) for start in corner.long().unbind(1))
    return pictures[samples[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def colours_swapped(pictures: Tensor, share: float, draws: Draws) -> Tensor:
    """Pictures (B, 3, H, W), the channels of a share of them in another order."""
    order = draws.uniform("colours", (3,)).argsort(dim=1)
    kept = draws.uniform("swap colours") >= share
    order = torch.where(kept[:, None], torch.arange(3, device=pictures.device), order)
    return pictures.gather(1, order[:, :, None, None].expand_as(pictures))


def _stored(dataset: LatentDataset, tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """What was stored as it is needed; None where it wasn't, or by another tokenizer."""
    if not isinstance(dataset, StoredLatents) or dataset.moments.manifest["tokenizer"] != tokenizer_hash(tokenizer):
        return None
    parts = [part.stacked() for part in dataset.moments.opened()]
    mean, logvar, tokens, counts = (torch.cat(several) for several in zip(*parts, strict=True))
    return mean, logvar, tokens, counts


def _gathered(dataset: LatentDataset, tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    samples = [dataset.latents(i) for i in range(len(dataset))]
    windows = [token_window(tokenizer, caption) for sample in samples for caption in sample.captions]
    tokens = torch.stack(windows) if windows else token_window(tokenizer, "")[None][:0]
    counts = torch.tensor([len(sample.captions) for sample in samples])
    mean, logvar = (torch.stack([getattr(sample, name) for sample in samples]) for name in ("mean", "logvar"))
    return mean, logvar, tokens, counts


def _moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    try:
        return [tensor.to(device) for tensor in tensors]
    except torch.OutOfMemoryError as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        raise DataError(
            f"the data set's {size / 2**30:.1f} GiB don't fit on {device}: set run.resident to false"
        ) from error
