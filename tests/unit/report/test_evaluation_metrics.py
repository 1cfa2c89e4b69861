"""Distances, intervals and their limits, against formulas written out here and against what must hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from sfumato.errors import InvalidRequest
from sfumato.report.metrics.bootstrap import estimate
from sfumato.report.metrics.clip_score import cosines
from sfumato.report.metrics.fid import Gaussian, frechet_distance, frechet_infinity
from sfumato.report.metrics.kid_cmmd import cmmd, kid
from sfumato.report.metrics.ssim import ssim
from support.evaluation_inputs import feature_rows


@pytest.mark.parametrize("count", [20, 33, 400], ids=["fewer than features", "as many", "more"])
def test_frechet_distance_is_the_formula_with_a_matrix_root(count: int) -> None:
    x, y = feature_rows(count, 32, 1), feature_rows(300, 32, 2, shift=0.2)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # of a positive matrix similar to the product, so that the root is real even where a is singular
    half = scipy.linalg.sqrtm(b).real
    root = np.sqrt(np.clip(np.linalg.eigvalsh(half @ a @ half), 0.0, None)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(Gaussian.of(x), Gaussian.of(y)) == pytest.approx(expected, rel=1e-6)
    moments = Gaussian.from_moments(y.mean(0), b)
    assert frechet_distance(Gaussian.of(x), moments) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_a_distance() -> None:
    x, y = Gaussian.of(feature_rows(50, 8, 1)), Gaussian.of(feature_rows(60, 8, 2))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)
    moved = Gaussian(mean=x.mean + 3.0, factor=x.factor)
    assert frechet_distance(x, moved) == pytest.approx(8 * 9.0)


def test_at_infinity_the_bias_of_few_pictures_is_gone() -> None:
    """Two sets of one distribution are 0 apart; the plain distance of few pictures says otherwise."""
    reference = Gaussian.of(feature_rows(40_000, 24, 1))
    plain, limit = [], []
    for seed in range(2, 8):
        rows = feature_rows(800, 24, seed)
        plain.append(frechet_distance(Gaussian.of(rows), reference))
        limit.append(frechet_infinity(rows, reference, points=10, least=200, seed=seed))
    assert abs(np.mean(limit)) < 0.35 * np.mean(plain)


def test_kid_expects_nothing_of_two_sets_of_one_distribution() -> None:
    same = [kid(feature_rows(300, 16, s), feature_rows(300, 16, s + 50), subsets=10).mean for s in range(8)]
    other = kid(feature_rows(300, 16, 1), feature_rows(300, 16, 2, shift=0.5), subsets=10).mean
    assert abs(np.mean(same)) < 0.1 * other
    assert min(same) < 0.0 < max(same)  # unbiased: below 0 as often


def test_kid_and_cmmd_are_sums_over_pairs() -> None:
    x, y = feature_rows(6, 5, 1) + 0.1, feature_rows(6, 5, 2) + 0.1
    cubic = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(cubic(s[i], s[j]) for s in (x, y) for i, j in pairs if i != j) / 30
    between = sum(cubic(x[i], y[j]) for i, j in pairs) / 36
    assert kid(x, y, subsets=1).mean == pytest.approx(within - 2 * between)
    u, v = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    near = lambda a, b: np.exp(-((a - b) ** 2).sum() / 200)  # noqa: E731
    sums = [sum(near(a[i], b[j]) for i, j in pairs) / 36 for a, b in ((u, u), (v, v), (u, v))]
    assert cmmd(x, y) == pytest.approx(1000 * (sums[0] + sums[1] - 2 * sums[2]), rel=1e-6)
    assert cmmd(x, 5 * x) == pytest.approx(0.0, abs=1e-9)


def test_an_interval_is_as_wide_as_the_mean_varies() -> None:
    values = np.random.RandomState(0).standard_normal(400)
    found = estimate(lambda chosen: float(values[chosen].mean()), 400, resamples=2000)
    half_width = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert found.high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)
    assert estimate(lambda chosen: float(values[chosen].mean()), 400, resamples=2000) == found


def test_intervals_hold_what_they_promise() -> None:
    """Of 200 sets of 60 numbers, about 95 % have the true mean in their interval."""
    random = np.random.RandomState(1)
    held = 0
    for seed in range(200):
        values = random.exponential(size=60)
        found = estimate(lambda chosen: float(values[chosen].mean()), 60, resamples=200, seed=seed)  # noqa: B023
        assert found.low is not None and found.high is not None
        held += found.low <= 1.0 <= found.high
    assert 0.88 * 200 <= held <= 0.99 * 200


def test_the_interval_of_a_biased_distance_holds_the_distance() -> None:
    rows, reference = feature_rows(100, 16, 3), Gaussian.of(feature_rows(500, 16, 4))
    found = estimate(lambda chosen: frechet_distance(Gaussian.of(rows[chosen]), reference), 100, resamples=100)
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high


GOOD = feature_rows(10, 4, 1) + 0.1
NAN = GOOD.copy()
NAN[3, 2] = np.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Gaussian.of(GOOD[:1]), "1 picture"),
        (lambda: Gaussian.of(NAN), "picture 3 has a feature that is not a finite number"),
        (lambda: kid(GOOD, NAN), "reference features: picture 3"),
        (lambda: frechet_distance(Gaussian.of(GOOD), Gaussian.of(GOOD[:, :3])), "of 4 and of 3 numbers"),
        (lambda: cmmd(GOOD, GOOD[:, :3]), "of 4 and of 3 numbers"),
        (lambda: cmmd(GOOD, np.zeros((3, 4))), "all zeros"),
        (lambda: cosines(GOOD, GOOD[:5]), "don't pair up"),
        (lambda: Gaussian.from_moments(np.zeros(3), np.zeros((4, 4))), "don't fit"),
        (lambda: Gaussian.from_moments(np.zeros(2), -np.eye(2)), "negative variances"),
        (lambda: Gaussian.from_moments(np.zeros(2), np.array([[1.0, 2.0], [0.0, 1.0]])), "not symmetric"),
        (lambda: frechet_infinity(GOOD[:3], Gaussian.of(GOOD)), "too few to extrapolate"),
        (lambda: ssim(np.zeros((8, 20, 3), np.uint8), np.zeros((8, 20, 3), np.uint8)), "smaller than SSIM's window"),
        (lambda: ssim(np.zeros((20, 20, 3), np.uint8), np.zeros((21, 20, 3), np.uint8)), "can't be compared"),
        (lambda: estimate(lambda _: 0.0, 0), "no pictures"),
        (lambda: estimate(lambda _: 0.0, 5, level=1.0), "level 1"),
    ],
)
def test_what_can_not_be_judged_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(InvalidRequest, match=message):
        call()
