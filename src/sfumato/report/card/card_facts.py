"""What a model's files can't say of it, as data: `card.toml` beside the weights. A field left out is unknown."""

from __future__ import annotations

import dataclasses
import importlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sfumato.errors import InvalidConfig
from sfumato.files import write_text
from sfumato.json_files import read_text
from sfumato.report.evaluation.published_curves import PublishedPoint
from sfumato.toml_files import from_values, to_toml

FACTS = "card.toml"
README = "README.md"
SCRATCH = "scratch"  # what a stage that begins with random weights starts from

_LONGEST = 200  # characters of a value taken over from a README
_TAKEN = ("license", "license_name", "license_link", "base_model", "language", "datasets", "tags")
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """A set of training data, and on what terms."""

    name: str
    by: str | None = None
    license: str | None = None
    where: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStage:
    """One training run of those that led to the model. `start` names the stages it went on from, or is "scratch"."""

    name: str
    start: str | None = None
    steps: int | None = None
    batch: int | None = None
    resolution: int | None = None
    data: str | None = None
    text_dropped: float | None = None
    hours: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmissionFacts:
    """What `emissions.estimate` takes; `given` says where the numbers given here come from."""

    hours: float
    hardware: str | None = None
    count: float = 1.0
    watts: float | None = None
    region: str | None = None
    provider: str | None = None
    intensity: float | None = None
    pue: float | None = None
    given: str = "given in the facts of this card"
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Everything a card says that is not read from the model's files. Texts are Markdown."""

    name: Annotated[str | None, "what the model is called"] = None
    summary: Annotated[str | None, "one paragraph: what it is and what for"] = None
    authors: Annotated[str | None, "who made it"] = None
    license: Annotated[str | None, "of the weights, as the Hugging Face Hub calls it; other with license_name"] = None
    license_name: Annotated[str | None, "where license is other"] = None
    license_link: Annotated[str | None, "where its text is"] = None
    base_model: Annotated[str | None, "what its weights began as: a Hub id"] = None
    language: Annotated[tuple[str, ...], "of the prompts: ISO codes"] = ()
    datasets: Annotated[tuple[str, ...], "Hub ids"] = ()
    tags: Annotated[tuple[str, ...], "for the Hub's search"] = ()
    example_prompt: Annotated[str | None, "for the code sample"] = None
    settings: Annotated[str | None, "what it works best with"] = None
    intended_use: Annotated[tuple[str, ...], "what it is for"] = ()
    misuse: Annotated[tuple[str, ...], "what it must not be used for; where left out, what holds for any model"] = ()
    out_of_scope: Annotated[tuple[str, ...], "what it can't be used for"] = ()
    limits: Annotated[tuple[str, ...], "what it does badly"] = ()
    bias: Annotated[tuple[str, ...], "whom and what it misrepresents"] = ()
    safety: Annotated[tuple[str, ...], "about checking its pictures"] = ()
    data: Annotated[tuple[DataSource, ...], "what it was trained on"] = ()
    data_notes: Annotated[tuple[str, ...], "about the data"] = ()
    training: Annotated[tuple[TrainingStage, ...], "the runs that led to it"] = ()
    training_notes: Annotated[tuple[str, ...], "about training"] = ()
    evaluation_notes: Annotated[tuple[str, ...], "what was measured or seen"] = ()
    curve: Annotated[tuple[PublishedPoint, ...], "a published evaluation"] = ()
    emissions: Annotated[EmissionFacts | None, "of training"] = None
    citation: Annotated[str | None, "BibTeX of the model itself"] = None
    more: Annotated[str | None, "Markdown put at the end"] = None


def read_facts(path: Path) -> CardFacts:
    """The facts in a TOML file. Raises `InvalidConfig` naming the file and the field, `ModelNotFound` without one."""
    try:
        return from_values(CardFacts, tomllib.loads(read_text(path)))
    except InvalidConfig as error:
        raise error if str(path) in str(error) else InvalidConfig(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path} is not TOML: {error}") from error


def write_facts(path: Path, facts: CardFacts, *, overwrite: bool = False) -> None:
    """Write the facts as TOML, every field explained; `read_facts` reads them back the same. Raises `OutputError`."""
    write_text(path, to_toml(facts), overwrite=overwrite)


def facts_in(folder: Path) -> CardFacts:
    """What a model's folder says: its card.toml; without one, the plain fields in the metadata of its README.md."""
    if (folder / FACTS).is_file():
        return read_facts(folder / FACTS)
    return _of_readme(folder / README) if (folder / README).is_file() else CardFacts()


def completed(facts: CardFacts, others: CardFacts) -> CardFacts:
    """Complete `facts` with `others` where they say nothing."""
    silent = {
        field.name: getattr(others, field.name)
        for field in dataclasses.fields(CardFacts)
        if getattr(facts, field.name) in (None, ())
    }
    return dataclasses.replace(facts, **silent)


def _of_readme(path: Path) -> CardFacts:
    """The plain fields of its YAML; none where it has no metadata, or none that can be read."""
    yaml: Any = importlib.import_module("yaml")  # the Hub's client, which we need anyway, brings it
    match = _FRONT_MATTER.match(read_text(path))
    if match is None:
        return CardFacts()
    try:
        values = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidConfig(f"{path}: its metadata is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, Mapping):
        return CardFacts()
    hints = {field.name: "tuple" in str(field.type) for field in dataclasses.fields(CardFacts)}
    taken = {name: _plain(values.get(name), several=hints[name]) for name in _TAKEN}
    return CardFacts(**{name: value for name, value in taken.items() if value})


def _plain(value: Any, *, several: bool) -> Any:
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    short = tuple(text for text in texts if 0 < len(text) <= _LONGEST and text.isprintable())
    return short if several else next(iter(short), None)
