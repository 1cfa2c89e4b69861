"""A picture's own caption among others: ranks as scipy counts them, and the command on painted pictures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from sfumato.errors import InvalidRequest
from sfumato.report.probes.own_caption import hits, ranks


def test_ranks_are_scipys() -> None:
    rng = np.random.default_rng(0)
    captions = rng.normal(size=(60, 8))
    pictures = captions + rng.normal(size=(60, 8))
    texts = [f"caption {i}" for i in range(60)]
    similar = (pictures / np.linalg.norm(pictures, axis=1, keepdims=True)) @ (
        captions / np.linalg.norm(captions, axis=1, keepdims=True)
    ).T
    for among in (60, 20):
        expected = [
            rankdata(-similar[i, i // among * among : (i // among + 1) * among], method="max")[i % among] - 1
            for i in range(60)
        ]
        np.testing.assert_array_equal(ranks(pictures, captions, texts, among), expected)
        assert hits(pictures, captions, texts, among) == {
            1: sum(r < 1 for r in expected),
            5: sum(r < 5 for r in expected),
        }


def test_the_same_words_twice_are_one_caption_and_a_tie_is_lost() -> None:
    captions = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    pictures = np.array([[1.0, 0.1], [1.0, 0.1], [1.0, 0.0]])
    np.testing.assert_array_equal(ranks(pictures, captions, ["a", "a", "b"], 3), [0, 0, 1])
    np.testing.assert_array_equal(ranks(pictures, captions, ["a", "b", "c"], 3), [1, 1, 2])


def test_a_remainder_chooses_among_the_last_as_many() -> None:
    rng = np.random.default_rng(1)
    captions = rng.normal(size=(101, 6))
    pictures, texts = captions + 3 * rng.normal(size=(101, 6)), [f"caption {i}" for i in range(101)]
    pictures[100] = -captions[100]  # nothing is less like it
    found = ranks(pictures, captions, texts, 100)
    assert len(found) == 101 and found[100] == 99
    np.testing.assert_array_equal(found[:100], ranks(pictures[:100], captions[:100], texts[:100], 100))


def test_one_caption_is_nothing_to_choose_from() -> None:
    for rows, texts in ((3, ["a", "a", "a"]), (4, ["b", "c", "a", "a"])):
        with pytest.raises(InvalidRequest, match="all captions to choose from are 'a'"):
            ranks(np.eye(4)[:rows], np.eye(4)[:rows], texts, 2)


def test_what_does_not_pair_up_is_refused() -> None:
    captions = np.eye(4)
    with pytest.raises(InvalidRequest, match="3 pictures and 4 captions"):
        ranks(captions[:3], captions, list("abcd"), 4)
    with pytest.raises(InvalidRequest, match="among 1"):
        ranks(captions, captions, list("abcd"), 1)
    with pytest.raises(InvalidRequest, match="zero"):
        ranks(np.zeros((4, 4)), captions, list("abcd"), 4)
