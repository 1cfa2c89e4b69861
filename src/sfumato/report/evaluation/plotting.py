"""Pareto curves: a distance against the CLIP score over the guidance scale, with the published ones beside."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import InvalidRequest
from sfumato.files import write_bytes
from sfumato.report.evaluation.curves import AGREEMENT, choose_distance, curves, title
from sfumato.report.evaluation.published_curves import published_curves
from sfumato.runtime import require

FORMATS = (".svg", ".png", ".pdf")


def plot(document: Mapping[str, Any], suffix: str, *, y: str | None = None, published: bool | None = None) -> bytes:
    """The bytes of a picture of the curves, with error bars; `suffix` decides the format.

    `published` puts the card's curves beside (None: where `y` is an FID). They are FID (10k) on CLIP ViT-L/14 and share
    nothing with a distance on other features: then they get axes of their own. Raises `MissingExtra` without
    matplotlib, `InvalidRequest` for another format.
    """
    if suffix not in FORMATS:
        raise InvalidRequest(f"curves can't be drawn as {suffix!r}: use {', '.join(FORMATS)}")
    require("matplotlib", extra="evaluate")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    distance = y or choose_distance(document)
    found = curves(document, AGREEMENT, distance)
    comparable = distance.startswith("frechet/inception/")
    beside = comparable if published is None else published
    panels = 2 if beside and not comparable else 1
    # Hashes in an SVG are random without a salt; the same scores are to give the same file.
    with rc_context({"svg.hashsalt": "sfumato", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4 * panels, 4.6), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for name, points in found.items():
            xs, ys = [point.x[0] for point in points], [point.y[0] for point in points]
            bars = [
                [[abs(end[0] - end[side]) for end in ends] for side in (1, 2)]
                for ends in ([point.x for point in points], [point.y for point in points])
            ]
            axes[0].errorbar(xs, ys, xerr=bars[0], yerr=bars[1], marker="o", capsize=2, linewidth=1.2, label=name)
            for point in points:
                place = (point.x[0], point.y[0])
                axes[0].annotate(f"{point.guidance_scale:g}", place, xytext=(4, 4), textcoords="offset points")
        if beside:
            for name, known in published_curves().items():
                axes[-1].plot(
                    [point.clip_score for point in known],
                    [point.fid for point in known],
                    marker=".",
                    linewidth=1.0,
                    alpha=0.6,
                    linestyle="--",
                    label=f"{name}, published",
                )
        for axis in axes:
            axis.set_xlabel("CLIP score")
            axis.grid(alpha=0.25)
            axis.legend()
        axes[0].set_ylabel(title(distance))
        axes[0].set_title(f"protocol {document['protocol']}: numbers at the points are guidance scales", fontsize=9)
        if panels == 2:
            axes[1].set_ylabel("FID (10k)")
            axes[1].set_title("as published: other features, other scale", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=_METADATA[suffix])
    return buffer.getvalue()


# Without the date, so that the same scores give the same file.
_METADATA: Mapping[str, dict[str, Any]] = {
    ".svg": {"Date": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
}


def save_plot(document: Mapping[str, Any], path: Path, *, overwrite: bool = False, **options: Any) -> None:
    """Write the curves to a file."""
    write_bytes(path, plot(document, path.suffix.lower(), **options), overwrite=overwrite)
