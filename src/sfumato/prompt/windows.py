"""From a prompt to the windows of tokens that the text encoder reads. Pure data: nothing here needs torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sfumato.prompt.tokenizer import Tokenizer
from sfumato.prompt.weighting import Fragment, Section, parse_attention, split_conditions

logger = logging.getLogger("sfumato")

Syntax = Literal["plain", "weighted"]
LongPrompts = Literal["warn", "chunk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWindows:
    """W windows of T = `max_length` tokens: begin, text, end, padding; and each token's weight, 1 outside the text.

    `cut` holds what did not fit, in order, exactly as typed: at most one piece for each section between `BREAK`s.
    """

    ids: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    cut: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing to guide towards, and how much."""

    windows: TokenWindows
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPlan:
    """What a prompt asks for: one condition, or several joined by `AND`."""

    conditions: tuple[Condition, ...]

    @property
    def cut(self) -> tuple[str, ...]:
        """All text of the prompt that the encoder will not see; empty when nothing was lost."""
        return tuple(piece for condition in self.conditions for piece in condition.windows.cut)

    @property
    def window_count(self) -> int:
        """The largest number of windows a condition has."""
        return max(len(condition.windows.ids) for condition in self.conditions)


def plan_prompt(
    tokenizer: Tokenizer,
    text: str,
    *,
    syntax: Syntax = "plain",
    long_prompts: LongPrompts = "warn",
    split_and: bool = True,
) -> PromptPlan:
    """Tokenize a prompt into windows.

    A window holds `max_length - 2` tokens of text. With `long_prompts="warn"` the rest is cut and kept in `cut`, which
    `warn_of_cut` tells; with "chunk" it goes on in further windows. "weighted" reads the syntax of
    `sfumato.prompt.weighting`; `split_and=False` takes `AND` as a word, as A1111 does in negative prompts.

    Raises `InvalidRequest` for text that is not valid Unicode or whose weights are no numbers.
    """
    conditions = []
    for sections, weight in _READERS[syntax](text, split_and):
        windows = _windows(tokenizer, text, sections, long_prompts)
        conditions.append(Condition(windows=windows, weight=weight))
    return PromptPlan(conditions=tuple(conditions))


_MOST_TOLD = 200  # characters


def warn_of_cut(tokenizer: Tokenizer, plan: PromptPlan) -> None:
    """Log each piece of the prompt that the encoder will not see, shortened: a book of one would be one line."""
    for piece in plan.cut:
        logger.warning(
            "the prompt is longer than %d tokens; left out: %r (long_prompts='chunk' keeps it)",
            tokenizer.max_length - 2,
            piece if len(piece) <= _MOST_TOLD else piece[: _MOST_TOLD - 1] + "…",
        )


def align_windows(tokenizer: Tokenizer, plans: Iterable[PromptPlan]) -> tuple[PromptPlan, ...]:
    """Give every condition of every plan the same number of windows, by adding empty ones.

    A batch through the UNet needs contexts of one length, so the negative prompt grows to the prompt's.
    """
    plans = tuple(plans)
    count = max((plan.window_count for plan in plans), default=0)
    empty_ids, empty_weights = _window(tokenizer, (), ())

    def grown(condition: Condition) -> Condition:
        windows = condition.windows
        missing = count - len(windows.ids)
        ids, weights = windows.ids + (empty_ids,) * missing, windows.weights + (empty_weights,) * missing
        return replace(condition, windows=replace(windows, ids=ids, weights=weights))

    return tuple(replace(plan, conditions=tuple(map(grown, plan.conditions))) for plan in plans)


def _read_plain(text: str, split_and: bool) -> list[tuple[tuple[Section, ...], float]]:
    return [(((Fragment(text=text, weight=1.0, origin=range(len(text))),),), 1.0)]


def _read_weighted(text: str, split_and: bool) -> list[tuple[tuple[Section, ...], float]]:
    if not split_and:
        return [(parse_attention(text), 1.0)]
    return [(parse_attention(part.text, part.start), part.weight) for part in split_conditions(text)]


_READERS = {"plain": _read_plain, "weighted": _read_weighted}


def _windows(tokenizer: Tokenizer, prompt: str, sections: Sequence[Section], long_prompts: LongPrompts) -> TokenWindows:
    room = tokenizer.max_length - 2
    windows: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
    cut: list[str] = []
    for number, section in enumerate(sections):
        ids, weights, origins = _tokens(tokenizer, section)
        if long_prompts == "warn" and len(ids) > room:
            cut.append(prompt[origins[room] : section[-1].origin[-1] + 1])
            ids = ids[:room]
        # A BREAK at the very end opens no further window; an empty section elsewhere is an empty window.
        last = number == len(sections) - 1
        length = len(ids) if last and windows else max(len(ids), 1)
        windows += [_window(tokenizer, ids[i : i + room], weights[i : i + room]) for i in range(0, length, room)]
    return TokenWindows(ids=tuple(i for i, _ in windows), weights=tuple(w for _, w in windows), cut=tuple(cut))


def _tokens(tokenizer: Tokenizer, section: Section) -> tuple[list[int], list[float], list[int]]:
    """Ids, weights and positions in the prompt. Each fragment is tokenized by itself, as A1111 does."""
    ids: list[int] = []
    weights: list[float] = []
    origins: list[int] = []
    for fragment in section:
        tokens = tokenizer.encode(fragment.text)
        ids += tokens.ids
        weights += [fragment.weight] * len(tokens.ids)
        origins += [fragment.origin[start] for start in tokens.starts]
    return ids, weights, origins


def _window(
    tokenizer: Tokenizer, ids: Sequence[int], weights: Sequence[float]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    padding = tokenizer.max_length - 2 - len(ids)
    return (
        (tokenizer.bos_id, *ids, tokenizer.eos_id, *(tokenizer.pad_id,) * padding),
        (1.0, *weights[: len(ids)], *(1.0,) * (padding + 1)),
    )
