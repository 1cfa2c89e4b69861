"""The published curves of v1-1 to v1-4, read off the card's figure: ±0.05 FID, ±0.0003 CLIP score."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).parent / "data" / "pareto_v1.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPoint:
    """One guidance scale of one checkpoint: FID of 10,000 pictures, CLIP score of ViT-L/14."""

    guidance_scale: float
    clip_score: float
    fid: float


def published_curves() -> Mapping[str, tuple[PublishedPoint, ...]]:
    """The points of each checkpoint, by growing guidance scale."""
    curves: dict[str, tuple[PublishedPoint, ...]] = {}
    with _FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = PublishedPoint(
                guidance_scale=float(row["guidance"]), clip_score=float(row["clip_score"]), fid=float(row["fid_10k"])
            )
            curves[row["checkpoint"]] = (*curves.get(row["checkpoint"], ()), point)
    return curves
