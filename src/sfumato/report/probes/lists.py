"""The lists of prompts that probes ask with, from the data files beside this one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import InvalidRequest
from sfumato.report.evaluation.prompt_list import Prompt, PromptList, pinned

_FOLDER = Path(__file__).parent / "data"
LANGUAGES = "languages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Neutral:
    """Prompts that leave open what `attributes` (name → choices) ask of the pictures. `template` makes a choice a
    caption."""

    prompts: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]
    template: str

    def captions(self, attribute: str) -> list[str]:
        """What the classifier compares pictures with."""
        return [self.template.format(choice) for choice in self.attributes[attribute]]


def probe_names() -> tuple[str, ...]:
    """The probes that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def read_neutral(name: str) -> Neutral:
    """The neutral prompts called so. `InvalidRequest` for another name."""
    known = [probe for probe in probe_names() if probe != LANGUAGES]
    if name not in known:
        raise InvalidRequest(f"no bias probe is called {name!r}: there are {', '.join(known)}")
    values = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return Neutral(
        prompts=tuple(values["prompts"]),
        attributes={attribute: tuple(choices) for attribute, choices in values["attributes"].items()},
        template=values["template"],
    )


def probe_prompts(name: str, each: int) -> PromptList:
    """The list that a probe asks with, every prompt `each` times (with a seed each). `InvalidRequest` for another name
    or number."""
    if each < 1:
        raise InvalidRequest(f"each prompt {each} times: take 1 or more")
    if name == LANGUAGES:
        captions = tomllib.loads((_FOLDER / f"{LANGUAGES}.toml").read_text(encoding="utf-8"))["captions"]
        asked = [
            Prompt(text=text, fields={"probe": name, "language": language, "english": caption["en"]})
            for caption in captions
            for language, text in caption.items()
        ]
    elif name in probe_names():
        asked = [Prompt(text=text, fields={"probe": name}) for text in read_neutral(name).prompts]
    else:
        raise InvalidRequest(f"no probe is called {name!r}: there are {', '.join(probe_names())}")
    return pinned([prompt for prompt in asked for _ in range(each)])
