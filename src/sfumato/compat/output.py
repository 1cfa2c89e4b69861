"""What the pipelines here return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Images = list[Image.Image] | NDArray[np.float32] | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StableDiffusionPipelineOutput(Mapping[str, Any]):
    """Pictures, and for each whether the safety checker flagged it (None where none looked).

    The attributes are also `output["images"]` and `output[0]`, and the pictures `output["sample"]`, as the library's
    first release had it. As a mapping it has, like diffusers', only the names that aren't None.
    """

    images: Images
    nsfw_content_detected: list[bool] | None

    def to_tuple(self) -> tuple[Images, list[bool] | None]:
        return self.images, self.nsfw_content_detected

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        return {
            "images": self.images,
            "sample": self.images,
            "nsfw_content_detected": self.nsfw_content_detected,
        }[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["images"] if self.nsfw_content_detected is None else ["images", "nsfw_content_detected"])

    def __len__(self) -> int:
        return len(list(iter(self)))
