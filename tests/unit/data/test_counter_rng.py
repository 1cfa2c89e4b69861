"""Random numbers named by words, and orders without a list: the published constructions, and what they promise."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sfumato.data.counter_rng import Stream, order_key, permuted, share


def test_the_numbers_are_blake2b_in_counter_mode() -> None:
    key = hashlib.blake2b(b"('crop', 7)", digest_size=32).digest()
    blocks = [hashlib.blake2b(i.to_bytes(8, "little"), key=key).digest() for i in range(2)]
    words = [int.from_bytes(block[8 * i : 8 * i + 8], "little") for block in blocks for i in reversed(range(8))]
    stream = Stream("crop", 7)
    assert [stream.bits64() for _ in range(16)] == words


@given(
    st.lists(st.one_of(st.text(), st.integers()), max_size=3), st.lists(st.one_of(st.text(), st.integers()), max_size=3)
)
def test_other_names_give_other_numbers(a: list[str | int], b: list[str | int]) -> None:
    same = [type(name) for name in a] == [type(name) for name in b] and a == b
    assert (Stream(*a).bits64() == Stream(*b).bits64()) == same


def test_draws_are_uniform() -> None:
    stream = Stream("test")
    dice = Counter(stream.between(1, 6) for _ in range(6000))
    assert sorted(dice) == [1, 2, 3, 4, 5, 6]
    assert stats.chisquare(list(dice.values())).pvalue > 1e-3
    assert stats.kstest([stream.uniform(2.0, 5.0) for _ in range(2000)], "uniform", args=(2, 3)).pvalue > 1e-3
    assert stats.binomtest(sum(stream.chance(0.3) for _ in range(2000)), 2000, 0.3).pvalue > 1e-3
    assert stats.kstest([share("a", i) for i in range(2000)], "uniform").pvalue > 1e-3


def test_every_order_of_three_is_as_likely() -> None:
    orders = Counter(tuple(Stream("order", i).shuffled("abc")) for i in range(6000))
    assert len(orders) == 6
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


@given(st.integers(1, 300), st.text(max_size=5))
def test_an_order_has_every_place_once(size: int, name: str) -> None:
    key = order_key(name)
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_every_order_of_four_comes_about() -> None:
    orders = Counter(tuple(permuted(i, 4, order_key(n)) for i in range(4)) for n in range(4800))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_an_order_of_billions_takes_no_list() -> None:
    size, key = 10**12, order_key("large")
    places = [permuted(i, size, key) for i in range(1000)]
    assert len(set(places)) == 1000
    assert all(0 <= place < size for place in places)
    assert stats.kstest([place / size for place in places], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("position", [-1, 5])
def test_a_place_outside_the_order_is_an_error(position: int) -> None:
    with pytest.raises(IndexError, match=str(position)):
        permuted(position, 5, b"")
