"""Rank policies against brute force, on the shapes where they break."""

import numpy as np
import pytest

from keras_compress.decomposition import EVBMF, FORMS, Energy, RankPolicy, decompose
from keras_compress.decomposition.ranks import rank_policy, resolve_rank

#: Forms whose ranks singular values do not choose.
UNGRADED = ("monochromatic", "bicluster", "ternary", "kernel_ridge")
GRADED = [form for form in FORMS if form not in UNGRADED]
EDGE_SHAPES = [(1, 1, 6, 4), (1, 1, 1, 1), (3, 3, 1, 8), (3, 3, 12, 2), (2, 2, 5, 1), (1, 3, 4, 4)]


def kernel_of(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9, 0.999, 1.0])
def test_energy_is_the_smallest_rank_that_keeps_the_share(fraction):
    squares = np.linalg.svd(kernel_of((12, 20)), compute_uv=False) ** 2
    rank = Energy(fraction).choose(squares, (12, 20))
    kept = [np.sum(squares[:r]) / np.sum(squares) for r in range(13)]
    assert kept[rank] >= fraction - 1e-12 and kept[rank - 1] < fraction


def test_energy_spends_no_rank_on_rounding_or_on_zeros():
    assert Energy(1.0).choose([4.0, 1.0, 1e-15, 0.0], (4, 9)) == 2
    assert Energy(1.0).choose([0.0, 0.0], (2, 2)) == 1
    assert Energy(1.0).choose(np.ones(4096), (4096, 4096)) == 4096
    kernel = (kernel_of((30, 3)) @ kernel_of((3, 40))).astype("float32")
    assert decompose(kernel, "svd", 1.0).rank == (3,)


@pytest.mark.parametrize("form", ["svd", "spatial"])
@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.95])
def test_energy_bounds_the_error_of_forms_that_truncate_once(form, fraction):
    kernel = kernel_of((3, 3, 6, 8))
    factors = decompose(kernel, form, fraction)
    assert factors.error(kernel) ** 2 <= 1 - fraction + 1e-9
    (rank,) = factors.rank
    if rank > 1:
        assert decompose(kernel, form, rank - 1).error(kernel) ** 2 > 1 - fraction


@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.95])
def test_energy_bounds_the_error_of_tucker_by_twice_as_much(fraction):
    kernel = kernel_of((3, 3, 6, 8))
    assert decompose(kernel, "tucker", fraction).error(kernel) ** 2 <= 2 * (1 - fraction) + 1e-9


@pytest.mark.parametrize("shape", EDGE_SHAPES)
@pytest.mark.parametrize("form", GRADED)
@pytest.mark.parametrize("rank", ["evbmf", 0.5, 1.0, EVBMF(), Energy(0.9)], ids=repr)
def test_policies_stay_within_the_limits_of_edge_shapes(form, shape, rank):
    kernel = kernel_of(shape)
    ranks = FORMS[form].resolve_rank(rank, kernel)
    limits = FORMS[form].limits(shape)
    assert all(1 <= r <= limit for r, limit in zip(ranks, limits, strict=True))
    # Of sums of outer products of more than two vectors, the unfoldings' ranks are bounds only.
    if rank == 1.0 and form not in ("cp", "separable_basis", "depthwise"):
        assert decompose(kernel, form, ranks).error(kernel) < 1e-6


@pytest.mark.parametrize("shape", EDGE_SHAPES)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "ternary"])
def test_no_limit_depends_on_more_than_the_shape_and_unknown_inputs_allow_no_less(form, shape):
    # Ternary terms are no dimensions of a space: as many as the kernel has entries are allowed.
    height, width, _, outputs = shape
    limits = FORMS[form].limits(shape)
    open_limits = FORMS[form].limits((height, width, float("inf"), outputs))
    for limit, open_limit in zip(limits, open_limits, strict=True):
        assert isinstance(limit, int) and isinstance(open_limit, int)
        assert 1 <= limit <= open_limit


def test_an_integer_goes_to_every_rank_as_far_as_it_is_of_use():
    assert resolve_rank(16, (64, 8)) == (16, 8)
    assert resolve_rank(np.int64(3), (64, 8)) == (3, 3)
    assert resolve_rank([16, 4], (64, 8)) == (16, 4)


def test_spectra_are_not_computed_for_explicit_ranks():
    def spectra():
        raise AssertionError("not needed")

    assert resolve_rank((2, 3), (4, 4), spectra) == (2, 3)


def test_a_policy_of_ones_own_is_taken():
    class Half(RankPolicy):
        def choose(self, squares, shape):
            return min(shape) // 2

    assert decompose(kernel_of((3, 3, 6, 8)), "tucker", Half()).rank == (3, 4)
    assert rank_policy(np.float32(0.5)).fraction == 0.5


@pytest.mark.parametrize(
    "rank,message",
    [
        (0, "`rank` must be a positive integer; got rank=0"),
        (-2, "`rank` must be a positive integer; got rank=-2"),
        (True, "`rank` must be a positive integer; got rank=True"),
        (None, "`rank` must be a positive integer; got rank=None"),
        (9, "larger than the kernel allows: got rank=9, the largest useful rank is 8"),
        ((7, 2), r"rank\[0\]=7 is larger than the kernel allows \(6\)"),
        ((2, 0), r"`rank\[1\]` must be a positive integer"),
        ((2, 0.5), r"`rank\[1\]` must be a positive integer"),
        ((2, 2, 2), "an integer or 2 integers"),
        (0.0, r"in \(0, 1\]; got rank=0.0"),
        (2.0, "Give a number of terms as an integer"),
        (float("nan"), r"in \(0, 1\]"),
        ("evbfm", "Did you mean 'evbmf'"),
    ],
)
def test_ranks_that_cannot_be_are_refused(rank, message):
    with pytest.raises(ValueError, match=message):
        decompose(kernel_of((3, 3, 6, 8)), "tucker", rank)


@pytest.mark.parametrize("rank", ["evbmf", 0.5, Energy(0.5)])
def test_policies_without_a_kernel_are_refused(rank):
    with pytest.raises(ValueError, match=r"Someone: .*trained kernel.*Use from_layer\(\)"):
        resolve_rank(rank, (4,), owner="Someone")


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan"), "half"])
def test_energy_outside_of_the_unit_interval_is_refused(fraction):
    with pytest.raises(ValueError, match=r"Energy: `fraction` must be a number in \(0, 1\]"):
        Energy(fraction)
