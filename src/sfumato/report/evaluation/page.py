"""One self-contained HTML page: curves, scores, what they were made with, and the pictures themselves."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.errors import MissingExtra
from sfumato.files import write_text
from sfumato.pictures.untrusted_pictures import open_picture
from sfumato.report.evaluation.curves import drawable, table
from sfumato.report.evaluation.evaluation_plan import Plan, read_run
from sfumato.report.evaluation.plotting import plot
from sfumato.report.evaluation.prompt_list import PromptList
from sfumato.report.evaluation.run_pictures import picture_path
from sfumato.report.evaluation.scoring import read_scores

_THUMBNAIL = 160  # pixels: a picture in a sheet
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .7rem; text-align: left; vertical-align: top; }
td.number { white-space: nowrap; }
code { font-size: .85em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; }
.curves img { background: #fff; width: 100%; min-width: 48rem; height: auto; }
.facts td:first-child { overflow-wrap: anywhere; min-width: 6rem; }
.sheet td { padding: .2rem; } .sheet img { display: block; width: 8rem; max-width: 8rem; }
.sheet th { font-weight: normal; max-width: 16rem; }
"""


def report_page(folder: Path, *, examples: int = 8) -> str:
    """The page of the scored run in `folder`, with the first `examples` prompts in every cell."""
    plan, prompts = read_run(folder)
    document = read_scores(folder)
    parts = [
        f"<h1>Evaluation: {_text(', '.join(dict.fromkeys(cell.label for cell in plan.cells)))}</h1>",
        f"<p>Protocol <b>{_text(plan.protocol)}</b>, {plan.count} prompts, {len(plan.cells)} settings, "
        f"{plan.count * len(plan.cells)} pictures.</p>",
        _notes(document["notes"]),
        _curves(document),
        "<h2>Scores</h2>",
        f"<p>In brackets: {document['level']:.0%} intervals over prompts, from {document['resamples']} resamples. "
        "They say how far other prompts would have moved a number, not how far another reference would.</p>",
        _scores(document),
        "<h2>Pictures</h2>",
        "<p>The same prompt has the same seed in every column.</p>",
        _sheet(folder, plan, prompts, examples),
        "<h2>What decides the numbers</h2>",
        _facts(document),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>sfumato evaluation: {_text(plan.protocol)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def save_page(folder: Path, path: Path, *, examples: int = 8, overwrite: bool = False) -> None:
    """Write the page to a file."""
    write_text(path, report_page(folder, examples=examples), overwrite=overwrite)


def data_uri(picture: np.ndarray[Any, np.dtype[np.uint8]], *, side: int = _THUMBNAIL) -> str:
    """A picture within the page: smaller where it is larger than `side`."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(value: object) -> str:
    return html.escape(str(value))


def _notes(notes: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in notes) + "</ul>" if notes else ""


def _curves(document: Mapping[str, Any]) -> str:
    """The curves as a figure, left out where there is nothing to draw, or nothing to draw with."""
    if not drawable(document):
        return ""
    try:
        drawn = plot(document, ".svg", published=True).decode()
    except MissingExtra as error:
        return f"<p>No curves: {_text(error)}</p>"
    return (
        f'<figure class="curves"><div class="scroll"><img alt="distance against CLIP score" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"></div>'
        "<figcaption>Error bars as in the table.</figcaption></figure>"
    )


def _scores(document: Mapping[str, Any]) -> str:
    heads, rows, shared = table(document)
    same = ", ".join(f"{name} {value}" for name, value in shared.items())
    return (f"<p>The same in all: {_text(same)}.</p>" if same else "") + _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f'<td class="number">{_text(cell)}</td>' for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _sheet(folder: Path, plan: Plan, prompts: PromptList, examples: int) -> str:
    head = "".join(f"<th>{_text(cell.name)}</th>" for cell in plan.cells)
    rows = []
    for index, text in enumerate(prompts.texts[:examples]):
        cells = "".join(
            f'<td><img alt="" src="{data_uri(np.asarray(open_picture(picture_path(folder, cell, index))[0]))}"></td>'
            for cell in plan.cells
        )
        rows.append(f"<tr><th>{_text(text)}<br><small>seed {plan.seed + index}</small></th>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="sheet"><thead><tr><th></th>{head}</tr></thead>{"".join(rows)}</table></div>'
    )


def _facts(document: Mapping[str, Any]) -> str:
    facts: dict[str, Any] = {
        **{f"run: {name.replace('_', ' ')}": value for name, value in document["run"].items()},
        **{f"reference: {name}": value for name, value in document["reference"].items()},
        **{f"features of {space}": width for space, width in document["dimensions"].items()},
    }
    for network in document["networks"]:
        facts[f"network {network['name']}"] = (
            f"{network['file']}, SHA-256 {network['sha256']}, pictures resized: {network['resize']}"
        )
    for model, made in document["made_with"].items():
        facts[f"model {model}"] = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in made.items())
    facts["seconds of painting"] = round(sum(cell["seconds"] for cell in document["cells"]), 1)
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td><code>{_text(value)}</code></td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    raw = _text(json.dumps(document["cells"], ensure_ascii=False))
    return (
        f'<table class="facts">{rows}</table><details><summary>The scores as JSON</summary><code>{raw}</code></details>'
    )
