"""Model cards: Hugging Face metadata and Markdown, from a model's files and its facts.

Nothing is made up: what neither says is called unknown where it would stand, and listed at the top. The same files and
facts give the same text, so that a card can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.files import write_text
from sfumato.report.card import card_sections as sections
from sfumato.report.card.card_facts import FACTS, README, CardFacts, write_facts
from sfumato.report.card.evaluation_section import Evaluation
from sfumato.report.card.model_traits import ModelTraits, read_traits
from sfumato.report.card.published_checkpoints import misuse_of_any
from sfumato.report.evaluation.curves import title

SOMEWHERE = "path/to/the/model"  # in code samples, for a model that has no name others would know


def write_card(
    folder: Path, facts: CardFacts, *, evaluation: Evaluation | None = None, overwrite: bool = False
) -> Path:
    """Write README.md, and the facts as card.toml, into a model's folder; gives the README's path.

    Call it when the folder has its weights: the card has their hashes. Raises as `read_traits` does, and `OutputError`.
    """
    text = make_card(read_traits(folder), facts, evaluation=evaluation)
    write_facts(folder / FACTS, facts, overwrite=overwrite)
    write_text(folder / README, text, overwrite=overwrite)
    return folder / README


def make_card(
    traits: ModelTraits,
    facts: CardFacts,
    *,
    call: str = SOMEWHERE,
    evaluation: Evaluation | None = None,
    plot: str | None = None,
) -> str:
    """The card of the model whose files were read. `call` is the name its code sample loads it by; `plot` the address
    of a picture of the evaluation. Raises `InvalidRequest` for facts that can't be, as a negative number of hours."""
    name = facts.name or "A model without a name"
    missing = sections.unknowns(facts, evaluation)
    blocks = {
        "": f"{facts.summary or f'What it is meant to be is {sections.UNKNOWN}.'}\n\n> {_origin(missing)}",
        "## Details": sections.details(facts, traits),
        "## Running it": sections.use(facts, traits, call),
        "## Intended use": sections.intended_use(facts),
        "## Misuse and malicious use": sections.misuse(facts, misuse_of_any()),
        "## Out of scope": sections.out_of_scope(facts),
        "## Limits": sections.limits(facts, traits),
        "## Bias": sections.bias(facts),
        "## Safety checker": sections.safety(facts, traits),
        "## Training": sections.training(facts),
        "## Evaluation": sections.evaluation(facts, evaluation, plot),
        "## Emissions": sections.emissions(facts),
        "## Provenance": sections.provenance(traits),
        "## Citation": sections.citation(facts),
    }
    if facts.more:
        blocks["## More"] = facts.more.strip()
    body = "\n\n".join(f"{title}\n\n{text}".strip() for title, text in blocks.items())
    return f"---\n{_yaml(metadata(facts, traits, evaluation))}---\n\n# {name}\n\n{body}\n"


def _origin(missing: Sequence[str]) -> str:
    """Where the card's statements come from, and what it can't state."""
    unknown = f"**Unknown:** {'; '.join(missing)}." if missing else "Nothing that it asks for is missing."
    return f"Written by `sfumato card` from the model's files and the facts given with them. {unknown}"


def metadata(facts: CardFacts, traits: ModelTraits, evaluation: Evaluation | None) -> dict[str, Any]:
    """What the Hugging Face Hub reads, as plain values; fields that nobody knows are left out."""
    emitted = None if facts.emissions is None else sections.estimated(facts.emissions)
    values: dict[str, Any] = {
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "language": list(facts.language),
        "base_model": facts.base_model,
        "datasets": list(facts.datasets),
        "library_name": "diffusers" if traits.layout == "diffusers" else None,
        "pipeline_tag": "text-to-image",
        "tags": list(dict.fromkeys([*facts.tags, "sfumato"])),
    }
    if emitted is not None and emitted.kg is not None:
        assert facts.emissions is not None
        where = sections.place(facts.emissions)
        values["co2_eq_emissions"] = {
            "emissions": round(1000.0 * emitted.kg, 3),  # the Hub's unit is the gram
            "source": emitted.formula,
            "training_type": "pre-training",
            **({"geographical_location": where} if where else {}),
            "hardware_used": emitted.hardware,
        }
    if evaluation is not None:
        values["model-index"] = _model_index(facts.name or "unnamed", evaluation)
    return {name: value for name, value in values.items() if value not in (None, [])}


def _model_index(name: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The Hub's own form of results: of one data set, each metric named with its setting."""
    metrics = []
    for point in evaluation.points:
        setting = ", ".join(f"{key} {value}" for key, value in point.settings.items())
        for metric, measured in point.metrics.items():
            told = f"{title(metric)} at {setting or 'its defaults'}"
            metrics.append({"type": metric, "value": float(f"{measured.value:.6g}"), "name": told})
    task, dataset = {"type": "text-to-image"}, {"name": evaluation.protocol, "type": "prompts"}
    return [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]


def _yaml(values: Mapping[str, Any]) -> str:
    """Write front matter as the Hub's own library does, so that reading and writing there changes nothing."""
    from huggingface_hub import ModelCardData

    written: str = ModelCardData(**values).to_yaml()
    return written + "\n"
