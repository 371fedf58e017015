"""Greedy rank choice of Zhang 2016 against all choices there are."""

import itertools
import math

import numpy as np
import pytest

from keras_compress.decomposition.allocation import RankCurve, greedy_ranks

RNG = np.random.default_rng(0)
SIZES = (5, 6, 4)
COSTS = (3.0, 1.0, 7.0)
SPECTRA = [np.sort(RNG.gamma(0.7, size=n))[::-1] for n in SIZES]
# Dear enough that no layer is better left as it is.
DENSE = [1e6] * 3


def curves(dense=DENSE):
    return [
        RankCurve([[(s, (9, n))]], (n,), lambda r, c=c: c * r[0], d)
        for s, n, c, d in zip(SPECTRA, SIZES, COSTS, dense, strict=True)
    ]


def energy(ranks):
    return math.prod(s[:r].sum() / s.sum() for s, r in zip(SPECTRA, ranks, strict=True))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_zhang_greedy_choice_meets_the_budget_close_to_the_best_of_all_choices(share):
    budget = share * sum(n * c for n, c in zip(SIZES, COSTS, strict=True))
    found = [r for (r,) in greedy_ranks(curves(), budget)]
    assert sum(r * c for r, c in zip(found, COSTS, strict=True)) <= budget
    every = itertools.product(*(range(1, n + 1) for n in SIZES))
    best = max(
        energy(r) for r in every if sum(a * c for a, c in zip(r, COSTS, strict=True)) <= budget
    )
    assert energy(found) >= 0.8 * best
    uniform = [max(1, int(share * n)) for n in SIZES]
    assert energy(found) >= energy(uniform)


def test_each_removal_is_the_least_missed_for_its_cost():
    whole = sum(n * c for n, c in zip(SIZES, COSTS, strict=True))
    ranks, order = list(SIZES), []
    while max(ranks) > 1:
        losses = [
            (s[r - 1] / s[:r].sum() / c, k)
            for k, (s, r, c) in enumerate(zip(SPECTRA, ranks, COSTS, strict=True))
            if r > 1
        ]
        ranks[min(losses)[1]] -= 1
        order.append(tuple(ranks))
    for expected in order:
        cost = sum(r * c for r, c in zip(expected, COSTS, strict=True))
        assert [r for (r,) in greedy_ranks(curves(), cost + 1e-6)] == list(expected)
    assert whole > cost


def test_a_layer_that_stays_dearer_in_factors_is_left_as_it_is():
    cheap = [1e6, 1.5, 1e6]
    found = greedy_ranks(curves(cheap), 0.6 * (15 + 1.5 + 28))
    assert found[1] is None and found[0] is not None and found[2] is not None
    total = found[0][0] * 3.0 + 1.5 + found[2][0] * 7.0
    assert total <= 0.6 * (15 + 1.5 + 28)


def test_a_budget_below_rank_1_of_all_layers_cannot_be_met():
    assert greedy_ranks(curves(), 10.9) is None
    assert greedy_ranks(curves(), 11.0) == [(1,), (1,), (1,)]


def test_two_ranks_of_one_layer_are_shared_out_alike():
    spectra = [[(SPECTRA[0], (9, 5))], [(SPECTRA[1], (9, 6))]]
    curve = RankCurve(spectra, (5, 6), lambda r: 4 * r[0] + 9 * r[0] * r[1] + 6 * r[1], 1e6)
    ((first, second),) = greedy_ranks([curve], 100.0)
    assert 4 * first + 9 * first * second + 6 * second <= 100
    product = SPECTRA[0][:first].sum() / SPECTRA[0].sum()
    product *= SPECTRA[1][:second].sum() / SPECTRA[1].sum()
    assert curve.energy((first, second)) == pytest.approx(product)
    assert (first, second) != (5, 6)
