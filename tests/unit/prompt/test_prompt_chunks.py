"""Windows of tokens: frames as transformers pads and truncates them, nothing cut silently, nothing lost in chunks."""

from __future__ import annotations

import logging
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sfumato.prompt.tokenizer import Tokenizer
from sfumato.prompt.windows import align_windows, plan_prompt, warn_of_cut

ASSETS = Path(str(files("sfumato") / "assets"))
TOKENIZER = Tokenizer.from_folder(ASSETS / "v1" / "tokenizer")
REFERENCE = CLIPTokenizer.from_pretrained(ASSETS / "v1" / "tokenizer")
WORDS = st.lists(st.sampled_from(["a", "red", "Crème", "猫", "don't", "12,5", "👍🏽", "supercalifragilistic", "\n"]))


def framed(text: str) -> list[int]:
    return REFERENCE(text, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.mark.parametrize("text", ["", "a red apple", "word " * 74, "word " * 75, "word " * 76, "猫" * 300])
def test_one_window_is_what_transformers_pads_and_truncates(text: str) -> None:
    (condition,) = plan_prompt(TOKENIZER, text).conditions
    assert [list(ids) for ids in condition.windows.ids] == [framed(text)]
    assert condition.windows.weights == ((1.0,) * 77,)


def test_the_pocket_window_has_77_tokens() -> None:
    tokenizer = Tokenizer.from_folder(ASSETS / "pocket" / "tokenizer")
    (condition,) = plan_prompt(tokenizer, "a red heart").conditions
    (ids,) = condition.windows.ids
    assert (len(ids), ids[0], ids[-1]) == (77, 3998, 3999)


def test_padding_is_the_files_pad_token() -> None:
    tokenizer = Tokenizer.from_folder(ASSETS / "v1" / "tokenizer")
    padded = Tokenizer(
        backend=tokenizer.backend, bos_id=49406, eos_id=49407, pad_id=0, max_length=77, vocab_size=tokenizer.vocab_size
    )
    (ids,) = plan_prompt(padded, "a cat").conditions[0].windows.ids
    assert ids == (49406, 320, 2368, 49407, *(0,) * 73)


def test_what_is_cut_is_told_exactly(caplog: pytest.LogCaptureFixture) -> None:
    kept, lost = "word " * 75, "Über\tALLES, and  more \n"
    plan = plan_prompt(TOKENIZER, kept + lost)
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        warn_of_cut(TOKENIZER, plan)
    assert plan.cut == (lost,)
    (record,) = caplog.records
    assert repr(lost) in record.getMessage()
    assert "75 tokens" in record.getMessage()


def test_nothing_cut_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_prompt(TOKENIZER, "word " * 75 + "  ")
    warn_of_cut(TOKENIZER, plan)
    assert plan.cut == ()
    assert not caplog.records


@settings(max_examples=60, deadline=None)
@given(words=WORDS, extra=st.integers(0, 90))
def test_kept_and_cut_make_the_prompt(words: list[str], extra: int) -> None:
    """Whatever is cut is the end of the prompt, and what stays is what transformers keeps of it."""
    text = "one " * extra + " ".join(words)
    plan = plan_prompt(TOKENIZER, text)
    assert list(plan.conditions[0].windows.ids[0]) == framed(text)
    fits = len(REFERENCE(text).input_ids) <= 77
    assert (plan.cut == ()) == fits
    if not fits:
        (cut,) = plan.cut
        assert text.endswith(cut)
        # The cut may start within a word, and half a word alone is other tokens: so up to the word before, and after.
        start = len(text) - len(cut.lstrip())
        before, after = text[:start].rpartition(" ")[0], text[: text.find(" ", start) % (len(text) + 1)]
        kept = REFERENCE(before, add_special_tokens=False).input_ids
        assert len(kept) <= 75
        assert kept == list(plan.conditions[0].windows.ids[0][1:76])[: len(kept)]
        assert len(REFERENCE(after, add_special_tokens=False).input_ids) > 75


@settings(max_examples=60, deadline=None)
@given(words=WORDS, extra=st.integers(0, 300), syntax=st.sampled_from(["plain", "weighted"]))
def test_chunks_lose_nothing(words: list[str], extra: int, syntax: str) -> None:
    text = "one " * extra + " ".join(words)
    plan = plan_prompt(TOKENIZER, text, syntax=syntax, long_prompts="chunk")
    assert plan.cut == ()
    expected = REFERENCE(text, add_special_tokens=False).input_ids
    ids = plan.conditions[0].windows.ids
    assert len(ids) == max(1, -(-len(expected) // 75))
    for number, window in enumerate(ids):
        part = expected[number * 75 : number * 75 + 75]
        assert list(window) == [49406, *part, *[49407] * (76 - len(part))]


def test_weights_stand_on_their_tokens() -> None:
    (condition,) = plan_prompt(TOKENIZER, "a (red:1.5) [apple]", syntax="weighted").conditions
    (ids,) = condition.windows.ids
    assert list(ids) == framed("a red apple")
    assert condition.windows.weights[0][:5] == (1.0, 1.0, 1.5, 1 / 1.1, 1.0)
    assert set(condition.windows.weights[0][4:]) == {1.0}


def test_plain_syntax_reads_brackets_as_text() -> None:
    text = "a (red:1.5) AND \\[b] BREAK"
    assert [list(ids) for ids in plan_prompt(TOKENIZER, text).conditions[0].windows.ids] == [framed(text)]


def test_break_opens_windows_in_either_mode() -> None:
    for long_prompts in ("warn", "chunk"):
        plan = plan_prompt(TOKENIZER, "a cat BREAK a dog BREAK", syntax="weighted", long_prompts=long_prompts)
        assert [list(ids) for ids in plan.conditions[0].windows.ids] == [framed("a cat"), framed("a dog")]
    plan = plan_prompt(TOKENIZER, "BREAK a dog", syntax="weighted")
    assert [list(ids) for ids in plan.conditions[0].windows.ids] == [framed(""), framed("a dog")]


def test_each_section_and_condition_tells_its_own_cut() -> None:
    long = "word " * 75
    text = f"{long}one BREAK {long}(two:1.3) more AND short AND {long}\\(three\\):0.5"
    plan = plan_prompt(TOKENIZER, text, syntax="weighted")
    assert plan.cut == ("one", "two:1.3) more", "(three\\)")
    assert [condition.weight for condition in plan.conditions] == [1.0, 1.0, 0.5]
    assert all(piece in text for piece in plan.cut)


def test_and_is_a_word_where_it_may_not_split() -> None:
    plan = plan_prompt(TOKENIZER, "a AND b", syntax="weighted", split_and=False)
    assert [list(ids) for ids in plan.conditions[0].windows.ids] == [framed("a AND b")]


def test_aligned_plans_have_equal_windows() -> None:
    plans = [
        plan_prompt(TOKENIZER, "word " * 200, long_prompts="chunk"),
        plan_prompt(TOKENIZER, "blurry"),
        plan_prompt(TOKENIZER, "a AND b BREAK c", syntax="weighted"),
    ]
    aligned = align_windows(TOKENIZER, plans)
    assert [[len(c.windows.ids) for c in plan.conditions] for plan in aligned] == [[3], [3], [3, 3]]
    assert [[len(c.windows.weights) for c in plan.conditions] for plan in aligned] == [[3], [3], [3, 3]]
    assert aligned[0] == plans[0]
    assert [list(ids) for ids in aligned[1].conditions[0].windows.ids] == [framed("blurry"), framed(""), framed("")]


def test_ten_thousand_words_chunk_completely() -> None:
    plan = plan_prompt(TOKENIZER, "(word) " * 10_000, syntax="weighted", long_prompts="chunk")
    assert plan.window_count == 134
