"""Whose picture is next: order, fairness, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.pipeline.request import Request
from sfumato.serve.jobs.fair_queue import LONG, FairQueue
from sfumato.serve.jobs.job_record import Job


def job(name: str, *, caller: str = "a", created: float = 0.0, count: int = 1, priority: int = 0) -> Job:
    return Job(id=name, caller=caller, created=created, request=Request(prompt=""), count=count, priority=priority)


def filled(*jobs: Job) -> FairQueue:
    queue = FairQueue()
    for each in jobs:
        queue.add(each, range(each.count))
    return queue


def drained(queue: FairQueue) -> list[tuple[str, int]]:
    taken = []
    while (next_one := queue.take()) is not None:
        taken.append((next_one[0].id, next_one[1]))
    return taken


def test_one_caller_is_served_by_age():
    assert drained(filled(job("new", created=2, count=2), job("old", created=1, count=2))) == [
        ("old", 0),
        ("old", 1),
        ("new", 0),
        ("new", 1),
    ]


def test_priority_comes_before_age():
    queue = filled(job("old", created=1), job("urgent", created=2, priority=1))
    assert [name for name, _ in drained(queue)] == ["urgent", "old"]


def test_callers_take_turns_whatever_their_priorities():
    queue = filled(job("many", created=1, count=3, priority=9), job("one", caller="b", created=2))
    assert [name for name, _ in drained(queue)] == ["many", "one", "many", "many"]


def test_a_long_job_lets_others_go_between():
    queue = filled(job("long", created=1, count=LONG + 3), job("short", created=2, count=2))
    names = [name for name, _ in drained(queue)]
    assert names == ["long"] * LONG + ["short", "long", "short", "long", "long"]


def test_a_picture_given_back_is_next_again():
    queue = filled(job("one", count=2))
    taken = queue.take()
    assert taken is not None
    queue.give_back(*taken)
    assert drained(queue) == [("one", 0), ("one", 1)]
    last = job("last")
    queue.give_back(last, 0)  # it had gone with its last picture
    assert drained(queue) == [("last", 0)]


JOBS = st.lists(
    st.builds(
        lambda caller, count, priority, created: (caller, count, priority, created),
        st.sampled_from("abc"),
        st.integers(1, 20),
        st.integers(0, 2),
        st.floats(0, 100),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(JOBS)
def test_every_picture_comes_out_once_and_callers_stay_level(asked: list[tuple[str, int, int, float]]):
    jobs = [
        job(f"j{i}", caller=caller, count=count, priority=priority, created=created)
        for i, (caller, count, priority, created) in enumerate(asked)
    ]
    queue = filled(*jobs)
    left = Counter(dict.fromkeys("abc", 0))
    for each in jobs:
        left[each.caller] += each.count
    order = [entry.job.id for entry in queue.order()]
    assert sorted(order) == sorted(each.id for each in jobs)
    served: Counter[str] = Counter()
    taken: Counter[tuple[str, int]] = Counter()
    while (next_one := queue.take()) is not None:
        each, number = next_one
        taken[each.id, number] += 1
        served[each.caller] += 1
        left[each.caller] -= 1
        waiting = [caller for caller in "abc" if left[caller] > 0]
        # Among callers who still wait nobody had two turns more than another: they all waited from the start.
        assert max((served[c] for c in waiting), default=0) - min((served[c] for c in waiting), default=0) <= 1
    assert taken == Counter({(each.id, number): 1 for each in jobs for number in range(each.count)})


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4))
def test_nobody_starves_while_others_keep_coming(others: int, length: int):
    """A long job of the same caller, and one of a quiet caller, get on though new jobs arrive at every turn."""
    queue = filled(job("long", created=0, count=40), job("quiet", caller="q", created=0, count=20))
    got: Counter[str] = Counter()
    for turn in range(200):
        for i in range(others):
            queue.add(job(f"n{turn}-{i}", created=turn + 1, count=length + 1), range(length + 1))
            queue.add(job(f"o{turn}-{i}", caller=f"o{i}", created=turn + 1), range(1))
        taken = queue.take()
        assert taken is not None
        got[taken[0].id] += 1
    assert got["quiet"] == 20
    assert got["long"] >= LONG
