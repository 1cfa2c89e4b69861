"""A learned vocabulary is CLIP's layout, the same for the same texts, and merges what the algorithm's paper says."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from sfumato.errors import InvalidRequest
from sfumato.prompt.bpe_training import train_tokenizer
from sfumato.prompt.tokenizer import Tokenizer

TEXTS = ("low lower lowest", "new newer newest", "wide wider widest", "a red heart", "two red hearts", "café")
SMALLEST = 2 * 256 + 2


def merges_of(files: dict[str, str]) -> list[tuple[str, ...]]:
    return [tuple(line.split(" ")) for line in files["merges.txt"].splitlines()[1:]]


def merges_by_hand(texts: tuple[str, ...], count: int) -> list[tuple[str, str]]:
    """Algorithm 1 of Sennrich et al. 2016, counting all over again for each merge; for texts of plain letters."""
    words = Counter(word for text in texts for word in text.split())
    split = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    merges = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in split.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append(best)
        for word, symbols in split.items():
            text = " ".join(symbols)
            padded = f" {text} ".replace(f" {best[0]} {best[1]} ", f" {best[0]}{best[1]} ")
            split[word] = tuple(padded.split())
    return merges


def test_the_merges_are_those_of_the_papers_algorithm() -> None:
    texts = TEXTS[:5]
    assert merges_of(train_tokenizer(texts, SMALLEST + 12)) == merges_by_hand(texts, 12)
    everything = merges_of(train_tokenizer(texts, 5000))
    assert everything == merges_by_hand(texts, 4000)
    assert len(everything) < 60


def test_the_order_of_the_texts_makes_no_difference() -> None:
    assert train_tokenizer(TEXTS, 540) == train_tokenizer(TEXTS[::-1], 540)


def test_transformers_reads_the_files_and_agrees(tmp_path: Path) -> None:
    for name, text in train_tokenizer(TEXTS, 520).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    ours, theirs = Tokenizer.from_folder(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    assert (ours.vocab_size, ours.max_length) == (520, theirs.model_max_length) == (520, 77)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (518, 519, 519)
    for text in (*TEXTS, "Łódź 🦊 99 unheard-of words", ""):
        assert [ours.bos_id, *ours.encode(text).ids, ours.eos_id] == theirs(text)["input_ids"], text


def test_a_vocabulary_without_room_for_a_merge_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="515"):
        train_tokenizer(TEXTS, SMALLEST)
