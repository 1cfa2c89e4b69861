"""The sections of a model card, each a function from facts and files to Markdown. What nobody says is "unknown"."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from sfumato.report.card.card_facts import SCRATCH, CardFacts, EmissionFacts, TrainingStage
from sfumato.report.card.evaluation_section import Evaluation
from sfumato.report.card.model_traits import ModelTraits
from sfumato.report.emissions.emission_tables import Source
from sfumato.report.emissions.estimate import Estimate, equivalents, estimate, mass, rounded
from sfumato.report.evaluation.curves import title

UNKNOWN = "unknown"
_CITATIONS = Path(__file__).parent / "facts" / "citations.bib"


def details(facts: CardFacts, traits: ModelTraits) -> str:
    """What the model is: makers, licence, sizes, parts."""
    licence = facts.license_name or facts.license
    link = f" ([text](<{facts.license_link}>))" if licence and facts.license_link else ""
    latents = traits.size // traits.factor
    rows = [
        ("made by", facts.authors or UNKNOWN),
        ("licence of the weights", f"{licence}{link}" if licence else UNKNOWN),
        ("language of prompts", ", ".join(facts.language) or UNKNOWN),
        ("began as", facts.base_model or ("random weights" if from_scratch(facts) else UNKNOWN)),
        ("kind", "latent text-to-image diffusion" + (", for inpainting" if traits.inpainting else "")),
        ("pictures", f"{traits.size} × {traits.size} pixels"),
        ("latents", f"{latents} × {latents} × {traits.latent_channels}, {traits.factor} times smaller a side"),
        ("prompts", f"{traits.positions} tokens, start and end included"),
        ("predicts", traits.prediction),
        ("noise schedule", traits.schedule or UNKNOWN),
        ("layout", traits.layout + (", moving average of the weights" if traits.ema else "")),
        ("parameters", f"{traits.parameters:,}"),
    ]
    parts = [(part.name, f"{part.parameters:,}", ", ".join(part.dtypes), part.shape) for part in traits.parts]
    return "\n\n".join([_table(("fact", "value"), rows), _table(("part", "parameters", "stored as", "shape"), parts)])


def from_scratch(facts: CardFacts) -> bool:
    """Whether the first of the model's training runs began with random weights."""
    return bool(facts.training) and facts.training[0].start == SCRATCH


def use(facts: CardFacts, traits: ModelTraits, call: str) -> str:
    """How the model is run."""
    model, prompt = (json.dumps(text, ensure_ascii=False) for text in (call, facts.example_prompt or "a red heart"))
    blocks = [
        f"```python\nimport sfumato\n\npipe = sfumato.load_pipeline({model})\n"
        f'pipe.generate({prompt}, seed=0).images[0].save("picture.png")\n```'
    ]
    if traits.layout == "diffusers":
        blocks.append("The folder is in the layout of diffusers, whose `StableDiffusionPipeline` reads it too.")
    blocks.append(f"Works best with: {facts.settings or UNKNOWN}.")
    return "\n\n".join(blocks)


def intended_use(facts: CardFacts) -> str:
    """What the model is for."""
    return _list(facts.intended_use) or f"What its makers mean it for is {UNKNOWN}."


def misuse(facts: CardFacts, general: Sequence[str]) -> str:
    """What the model must not be used for; `general` is what holds for any model whose makers don't say."""
    if facts.misuse:
        lead = "It must not be used to make, or to spread, what is hostile to people or shuts them out. Among else:"
        return f"{lead}\n\n{_list(facts.misuse)}"
    lead = f"What its makers forbid is {UNKNOWN}; the licence may say. For any model, this is misuse:"
    return f"{lead}\n\n{_list(general)}"


def out_of_scope(facts: CardFacts) -> str:
    """What the model can't be used for."""
    return _list(facts.out_of_scope) or "A model like this paints what is likely, not what is true: it proves nothing."


def limits(facts: CardFacts, traits: ModelTraits) -> str:
    """What the model does badly: what is known, and what follows from its shape."""
    built_in = [
        f"Its autoencoder is lossy: it keeps a picture with {traits.factor} times fewer pixels a side, and the finest "
        "detail can't be painted.",
        f"Of a prompt it reads {traits.positions - 2} tokens; sfumato says so when there are more.",
    ]
    lead = "" if facts.limits else f"What it does badly beyond what follows from its shape is {UNKNOWN}.\n\n"
    return lead + _list((*facts.limits, *built_in))


def bias(facts: CardFacts) -> str:
    """Whom and what the model misrepresents."""
    return _list(facts.bias) or (
        f"Its biases are {UNKNOWN}: nobody has said that they were looked for. A model has those of its pictures and "
        "captions."
    )


def safety(facts: CardFacts, traits: ModelTraits) -> str:
    """Whether anything looks at the model's pictures."""
    here = (
        "These files bring a safety checker, and sfumato uses it."
        if traits.safety_checker
        else "These files bring no safety checker. sfumato then uses open-nsfw where it is installed "
        "(`pip install 'sfumato[safety]'`), else pictures are recorded as `unchecked`."
    )
    return _list((*facts.safety, here))


def training(facts: CardFacts) -> str:
    """How the model was trained: data with their licences, stages, and how."""
    blocks = []
    if facts.data:
        rows = [
            (source.name, source.by or UNKNOWN, source.license or UNKNOWN, source.where or UNKNOWN, source.note or "")
            for source in facts.data
        ]
        blocks.append(_table(("data", "by", "licence", "where", "note"), rows))
    else:
        blocks.append(f"The data it was trained on, and their licences, are {UNKNOWN}.")
    blocks.append(_list(facts.data_notes))
    if facts.training:
        titles = ("stage", "from", "steps", "batch", "pictures seen", "resolution", "data", "text dropped", "hours")
        blocks.append(_table(titles, [_stage(stage) for stage in facts.training]))
    else:
        blocks.append(f"How it was trained is {UNKNOWN}.")
    blocks.append(_list(facts.training_notes))
    return "\n\n".join(block for block in blocks if block)


def evaluation(facts: CardFacts, found: Evaluation | None, plot: str | None) -> str:
    """What was measured: noted, published, and by `sfumato evaluate`."""
    blocks = [_list(facts.evaluation_notes)]
    if facts.curve:
        rows = [(f"{p.guidance_scale:g}", f"{p.clip_score:.4f}", f"{p.fid:.2f}") for p in facts.curve]
        blocks += ["Published:", _table(("guidance", "CLIP score", "FID"), rows)]
    if found is not None:
        blocks += _measured(found)
    if plot:
        blocks.append(f"![the evaluation's curve](<{plot}>)")
    return "\n\n".join(block for block in blocks if block) or f"How well it does is {UNKNOWN}."


def _measured(found: Evaluation) -> list[str]:
    """A table of the points, what all of them share before it, what the numbers rest on after it."""
    settings = dict.fromkeys(name for point in found.points for name in point.settings)
    values = {name: {point.settings.get(name, "") for point in found.points} for name in settings}
    alike = {name: next(iter(seen)) for name, seen in values.items() if len(seen) == 1 and len(found.points) > 1}
    varying = [name for name in settings if name not in alike]
    metrics = list(dict.fromkeys(name for point in found.points for name in point.metrics))
    rows = [
        (
            *(point.settings.get(name, "") for name in varying),
            "" if point.pictures is None else f"{point.pictures:,}",
            *(str(point.metrics[name]) if name in point.metrics else "" for name in metrics),
        )
        for point in found.points
    ]
    shared = "".join(f", {name} {_cell(value)}" for name, value in alike.items())
    intervals = "" if found.level is None else f"; in brackets {found.level:.0%} intervals by bootstrap"
    return [
        f"Measured by `sfumato evaluate`, protocol {_cell(found.protocol)}{shared}{intervals}:",
        _table((*varying, "pictures", *map(title, metrics)), rows),
        _list(found.basis),
    ]


def emissions(facts: CardFacts) -> str:
    """What training cost, with every constant's source."""
    if facts.emissions is None:
        return f"What its training took in energy and CO2 is {UNKNOWN}."
    found = estimated(facts.emissions)
    rows = [
        ("hardware", found.hardware if found.count == 1 else f"{found.count:g} × {found.hardware}"),
        ("hours", f"{found.hours:,.6g}"),
        ("where", place(facts.emissions) or UNKNOWN),
        ("energy", f"{rounded(found.kwh)} kWh"),
        ("emissions", mass(found.kg)),
        ("formula", found.formula),
        ("method", found.method),
    ]
    constants = [(c.name, f"{c.value:g} {c.unit}".rstrip(), str(c.source)) for c in found.constants]
    blocks = [_table(("fact", "value"), rows), _table(("constant", "value", "source"), constants)]
    telling = [f"{rounded(same.value)} {same.unit} {same.name}" for same in equivalents(found.kg) if same.value >= 0.01]
    if telling:
        blocks.append(f"As much as {', or '.join(telling)} (EPA).")
    if facts.emissions.note:
        blocks.append(facts.emissions.note)
    return "\n\n".join(blocks)


def estimated(facts: EmissionFacts) -> Estimate:
    """The estimate from a card's facts. Raises `InvalidRequest`."""
    return estimate(
        hours=facts.hours,
        hardware=facts.hardware,
        count=facts.count,
        watts=facts.watts,
        region=facts.region,
        provider=facts.provider,
        intensity=facts.intensity,
        pue=facts.pue,
        given=Source(cite=facts.given, url=""),
    )


def place(facts: EmissionFacts) -> str | None:
    """Where training was computed; None where an average stands for a place that nobody noted."""
    return None if facts.region == "world" else facts.region


def provenance(traits: ModelTraits) -> str:
    """Which files the card is about, and how their pictures are marked."""
    return "\n\n".join(
        [
            f"This card is about these files and no others (SHA-256; together `{traits.sha256}`):",
            _table(("file", "SHA-256"), [(name, f"`{digest}`") for name, digest in traits.files.items()]),
            "Pictures that sfumato makes say so: each has its settings and this hash in its metadata, the IPTC digital "
            "source type of generated media, and from 256 × 256 pixels on the invisible watermark of the original "
            "scripts, unless it was switched off.",
        ]
    )


def citation(facts: CardFacts) -> str:
    """BibTeX of the model, the method and this software."""
    entries = [facts.citation.strip()] if facts.citation else []
    return "```bibtex\n" + "\n\n".join([*entries, _CITATIONS.read_text(encoding="utf-8").strip()]) + "\n```"


def unknowns(facts: CardFacts, found: Evaluation | None) -> tuple[str, ...]:
    """What a reader of the card will miss."""
    missing = {
        "who made it": not facts.authors,
        "the licence of the weights": not (facts.license or facts.license_name),
        "what its weights began as": not facts.base_model and not from_scratch(facts),
        "the language of its prompts": not facts.language,
        "what its makers mean it for": not facts.intended_use,
        "what its makers forbid": not facts.misuse,
        "its limits": not facts.limits,
        "its biases": not facts.bias,
        "the training data and their licences": not facts.data,
        "how it was trained": not facts.training,
        "how well it does": not (facts.evaluation_notes or facts.curve or found),
        "what training emitted": facts.emissions is None or estimated(facts.emissions).kg is None,
    }
    return tuple(name for name, is_missing in missing.items() if is_missing)


def _stage(stage: TrainingStage) -> tuple[str, ...]:
    seen = f"{stage.steps * stage.batch:,}" if stage.steps and stage.batch else UNKNOWN
    return (
        stage.name,
        stage.start or UNKNOWN,
        UNKNOWN if stage.steps is None else f"{stage.steps:,}",
        UNKNOWN if stage.batch is None else f"{stage.batch:,}",
        seen,
        UNKNOWN if stage.resolution is None else str(stage.resolution),
        stage.data or UNKNOWN,
        UNKNOWN if stage.text_dropped is None else f"{stage.text_dropped:.0%}",
        "" if stage.hours is None else f"{stage.hours:g}",
    )


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(item.split())}" for item in items)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, columns that are empty throughout left out."""
    cells = [[_cell(value) for value in row] for row in rows]
    kept = [i for i in range(len(titles)) if any(row[i] for row in cells)]
    lines = [[titles[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
