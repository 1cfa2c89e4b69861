"""The weighted prompt syntax against A1111's documented examples and its grammar written out a second way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import InvalidRequest
from sfumato.prompt.encode_prompt import apply_weights, encode
from sfumato.prompt.weighting import parse_attention, split_conditions
from sfumato.prompt.windows import Condition, PromptPlan, TokenWindows

# The examples in the docstring of A1111's parse_prompt_attention.
DOCUMENTED = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ],
}


def one_section(text: str) -> list[tuple[str, float]]:
    (section,) = parse_attention(text)
    return [(fragment.text, fragment.weight) for fragment in section]


@pytest.mark.parametrize(("text", "expected"), DOCUMENTED.items(), ids=list(DOCUMENTED))
def test_documented_examples(text: str, expected: list[tuple[str, float]]) -> None:
    assert one_section(text) == expected


def weight_of_closing(text: str, position: int) -> tuple[float, int] | None:
    """The number and the end of a `: number )` at `position`, read by hand."""
    i = position + 1
    while i < len(text) and text[i].isspace():
        i += 1
    start = i
    if i < len(text) and text[i] in "+-":
        i += 1
    digits = i
    while i < len(text) and (text[i] in ".0123456789"):
        i += 1
    end = i
    while i < len(text) and text[i].isspace():
        i += 1
    if end == digits or i >= len(text) or text[i] != ")":
        return None
    return float(text[start:end]), i + 1


def by_character(text: str) -> list[tuple[str, float]]:
    """A1111's grammar, one character at a time: a character's weight is the product over the brackets around it."""
    characters: list[list[object]] = []
    stacks: dict[str, list[int]] = {"(": [], "[": []}
    closers = {")": ("(", 1.1), "]": ("[", 1 / 1.1)}
    i = 0

    def weigh(first: int, factor: float) -> None:
        for character in characters[first:]:
            character[1] *= factor

    while i < len(text):
        c = text[i]
        if c == "\\":
            if i + 1 < len(text) and text[i + 1] in "()[]\\":
                characters.append([text[i + 1], 1.0])
                i += 1
        elif c in stacks:
            stacks[c].append(len(characters))
        elif c in closers and stacks[closers[c][0]]:
            weigh(stacks[closers[c][0]].pop(), closers[c][1])
        elif c == ":" and stacks["("] and (closing := weight_of_closing(text, i)):
            weigh(stacks["("].pop(), closing[0])
            i = closing[1] - 1
        else:
            characters.append([c, 1.0])
        i += 1
    for first in stacks["("]:
        weigh(first, 1.1)
    for first in stacks["["]:
        weigh(first, 1 / 1.1)
    runs: list[tuple[str, float]] = []
    for c, weight in characters:
        if runs and runs[-1][1] == weight:
            runs[-1] = (runs[-1][0] + str(c), runs[-1][1])
        else:
            runs.append((str(c), weight))
    return runs


PIECES = st.sampled_from(["(", ")", "[", "]", "\\", ":", ":1.2)", ": -.5 )", ":1)", "a", " ", "é猫", "1.5", ".", "\n"])


@given(pieces=st.lists(PIECES, max_size=30))
def test_any_brackets_match_the_grammar(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        expected = by_character(text)
    except ValueError:  # "1.51.5" and the like, where A1111 crashes
        with pytest.raises(InvalidRequest, match="is not a number"):
            parse_attention(text)
        return
    assert one_section(text) == expected


@given(pieces=st.lists(st.one_of(PIECES, st.just("BREAK"), st.just(" BREAK ")), max_size=20))
def test_origins_point_at_the_typed_characters(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        sections = parse_attention(text, start=7)
    except InvalidRequest:
        assert ":" in text
        return
    for section in sections:
        for fragment in section:
            assert fragment.text
            assert "".join(text[i - 7] for i in fragment.origin) == fragment.text
    origins = [i for section in sections for fragment in section for i in fragment.origin]
    assert origins == sorted(set(origins))


BREAKS = {
    "a BREAK b": [["a"], ["b"]],
    "a\n BREAK\tb BREAK c": [["a"], ["b"], ["c"]],
    "BREAK a": [[], ["a"]],
    "a BREAK": [["a"], []],
    "a BREAK BREAK b": [["a"], [], ["b"]],
    "BREAKFAST break aBREAK": [["BREAKFAST break aBREAK"]],
    "(a BREAK b:2)": [["a"], ["b"]],
    "a,BREAK,b": [["a,"], [",b"]],
}


@pytest.mark.parametrize(("text", "expected"), BREAKS.items(), ids=list(BREAKS))
def test_break(text: str, expected: list[list[str]]) -> None:
    assert [[fragment.text for fragment in section] for section in parse_attention(text)] == expected


def test_break_within_brackets_keeps_the_weight_on_both_sides() -> None:
    assert [[f.weight for f in section] for section in parse_attention("(a BREAK b:2)")] == [[2.0], [2.0]]


CONDITIONS = {
    "a cat": [("a cat", 1.0)],
    "a cat AND a dog": [("a cat", 1.0), (" a dog", 1.0)],
    "a cat :1.5 AND a dog: -.5 ": [("a cat", 1.5), (" a dog", -0.5)],
    "a:1:2": [("a:1", 2.0)],
    "BAND AND ANDROID and": [("BAND", 1.0), (" ANDROID and", 1.0)],
    "(a:1.2) AND b:2.": [("(a:1.2)", 1.0), (" b", 2.0)],
    "AND": [("", 1.0), ("", 1.0)],
    "a: b": [("a: b", 1.0)],
    "a\nb :3": [("a\nb", 3.0)],
}


@pytest.mark.parametrize(("text", "expected"), CONDITIONS.items(), ids=list(CONDITIONS))
def test_conditions(text: str, expected: list[tuple[str, float]]) -> None:
    parts = split_conditions(text)
    assert [(part.text, part.weight) for part in parts] == expected
    assert all(text[part.start :].startswith(part.text) for part in parts)


HOSTILE = {
    "(a:1.2.3)": "weight '1.2.3' is not a number",
    "(a:...)": "weight '...' is not a number",
    "(a:" + "9" * 400 + ")": "inf is beyond",
    "(" * 3 + "a" + ":1000)" * 3: r"1e\+09 is beyond",
    "(" * 101 + "a": "opens more than 100 brackets at once",
    "([" * 60 + "a": "opens more than 100 brackets at once",
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_impossible_weights_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_attention(text)


def test_too_large_a_condition_weight_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="inf is beyond"):
        split_conditions("a cat :" + "9" * 400)


def test_a_hundred_brackets_are_allowed() -> None:
    ((_, weight),) = one_section("(" * 100 + "a")
    assert weight == pytest.approx(1.1**100)


def test_weights_multiply_and_restore_each_windows_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 3, generator=generator) + 0.5
    weights = torch.tensor([[1.0, 1.2, 0.5, -0.3, 1.0], [1.0] * 5])
    out = apply_weights(hidden, weights)
    window = hidden[0].double().numpy()
    scaled = window * weights[0].double().numpy()[:, None]
    expected = scaled * (window.mean() / scaled.mean())
    torch.testing.assert_close(out[0].double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    assert torch.equal(out[1], hidden[1])


def test_half_precision_is_weighted_in_float32() -> None:
    hidden = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(1)) + 0.5
    weights = torch.linspace(0.5, 1.5, 77)[None]
    out = apply_weights(hidden.half(), weights)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), apply_weights(hidden.half().float(), weights), rtol=1e-3, atol=1e-3)


def test_encode_joins_windows_along_tokens() -> None:
    windows = TokenWindows(ids=((1, 2, 3), (4, 5, 6)), weights=((1.0, 1.0, 1.0), (1.0, 2.0, 1.0)))
    plan = PromptPlan(conditions=(Condition(windows=windows, weight=0.7), Condition(windows=windows)))
    seen = []

    def encode_ids(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return torch.stack([ids.float(), ids.float() + 1], dim=-1)

    (context, weight), (_, other) = encode(plan, encode_ids)
    assert seen[0].dtype == torch.int64
    assert (weight, other) == (0.7, 1.0)
    # Window 2 by hand: mean 5.5; weighted vectors (4 5) (10 12) (6 7), mean 44 / 6.
    factor = 5.5 / (44 / 6)
    second = [[4 * factor, 5 * factor], [10 * factor, 12 * factor], [6 * factor, 7 * factor]]
    expected = torch.tensor([[[1, 2], [2, 3], [3, 4], *second]])
    torch.testing.assert_close(context, expected)
