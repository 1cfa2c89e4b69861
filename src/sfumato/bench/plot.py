"""A benchmark as a picture: time a step with its spread, and memory, a bar a contender."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from sfumato.errors import InvalidRequest
from sfumato.runtime import require

FORMATS = (".svg", ".png", ".pdf")

# Without the date, so that the same results give the same file.
_METADATA: Mapping[str, dict[str, Any]] = {
    ".svg": {"Date": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
}
_LABELS = {"step": "seconds a guided step", "decode": "seconds a decode", "image": "seconds a picture"}


def check_format(suffix: str) -> None:
    """Refuse before the measurement: `InvalidRequest` for what can't be drawn, `MissingExtra` without matplotlib."""
    if suffix not in FORMATS:
        raise InvalidRequest(f"results can't be drawn as {suffix!r}: use {', '.join(FORMATS)}", field="plot")
    require("matplotlib", extra="bench")


def plot(document: Mapping[str, Any], suffix: str) -> bytes:
    """Draw the bytes of an image of a benchmark's JSON document. Raises as `check_format` does, and
    `InvalidRequest` where no contender was measured."""
    check_format(suffix)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [row for row in document["contenders"] if "not_measured" not in row]
    if not rows:
        raise InvalidRequest("no contender was measured: there is nothing to draw")
    names = [row["name"] for row in rows]
    panels = [*document["plan"]["what"], "memory"]
    with rc_context({"svg.hashsalt": "sfumato", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.4 * len(panels) + 1.2, 1.2 + 0.45 * len(rows)), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, panel in zip(axes, panels, strict=True):
            if panel == "memory":
                widths, spread = [row["peak_bytes"] / 1e9 for row in rows], None
                axis.set_xlabel("GB resident at most")
            else:
                widths = [row["median"][panel] for row in rows]
                ends = [(row["seconds"][panel], middle) for row, middle in zip(rows, widths, strict=True)]
                spread = [[middle - min(all_) for all_, middle in ends], [max(all_) - middle for all_, middle in ends]]
                axis.set_xlabel(_LABELS[panel])
            bars = axis.barh(names, widths, xerr=spread, capsize=3, color="#7a8fb8", error_kw={"linewidth": 1.0})
            axis.bar_label(bars, fmt="%.3g", padding=4)
            axis.margins(x=0.18)
            axis.grid(axis="x", alpha=0.25)
        axes[0].invert_yaxis()
        plan, machine = document["plan"], document["machine"]
        figure.suptitle(
            f"{plan['model']}, medians of {plan['rounds']} rounds in turn, {machine['threads']} threads, "
            f"{machine['processor']}",
            fontsize=9,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=_METADATA[suffix])
    return buffer.getvalue()
