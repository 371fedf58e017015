"""Kernels of commuting permutations against enumeration."""

import itertools

import numpy as np
import pytest
from keras import ops

from keras_compress.decomposition import project_s4, s4_patterns
from keras_compress.decomposition.structured import commuting_pairs


def power(permutation, exponent, kind):
    for _ in range(exponent):
        kind = permutation[kind]
    return kind


def all_patterns(height, width):
    """sv^i sh^j (g) for all pairs that commute as matrices, and all g."""
    found = []
    permutations = list(itertools.permutations(range(4)))
    for sv, sh in itertools.product(permutations, repeat=2):
        a, b = np.eye(4)[list(sv)], np.eye(4)[list(sh)]
        if np.array_equal(a @ b, b @ a):
            for g in range(4):
                rows = range(height)
                found.append([[power(sv, i, power(sh, j, g)) for j in range(width)] for i in rows])
    return np.array(found)


def partition(pattern):
    return frozenset(
        frozenset(np.flatnonzero(np.ravel(pattern) == kind).tolist()) for kind in np.unique(pattern)
    )


def best_of_a_class(values):
    """Least squares over all masks: (squared error, projected values)."""
    best = (np.sum(values**2), np.zeros(len(values)))
    for mask in itertools.product((0, 1), repeat=len(values)):
        mask = np.array(mask)
        if mask.any():
            projected = mask * values[mask == 1].mean()
            best = min(best, (np.sum((projected - values) ** 2), projected), key=lambda b: b[0])
    return best


def best_by_enumeration(piece):
    best = np.inf
    for blocks in {partition(pattern) for pattern in all_patterns(*piece.shape)}:
        parts = [best_of_a_class(piece.ravel()[sorted(block)]) for block in blocks]
        best = min(best, sum(error for error, _ in parts))
    return best


def test_appuswamy_there_are_120_commuting_ordered_pairs():
    pairs = commuting_pairs()
    # 24 permutations times 5 classes.
    assert len(pairs) == len(set(pairs)) == 24 * 5
    for p, q in pairs:
        assert [p[i] for i in q] == [q[i] for i in p]


@pytest.mark.parametrize("size", [(3, 3), (2, 3), (1, 5), (1, 1)])
def test_appuswamy_patterns_are_those_of_all_pairs_and_types(size):
    patterns = s4_patterns(size)
    ours = [partition(pattern) for pattern in patterns]
    assert len(set(ours)) == len(ours)
    assert set(ours) == {partition(pattern) for pattern in all_patterns(*size)}
    # The identity pair: one type everywhere.
    assert not patterns.any(axis=(1, 2)).all()


def test_appuswamy_projection_is_never_beaten_by_another_member():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 3)).astype("float32")
    projected = ops.convert_to_numpy(project_s4(kernel))
    for s, t in np.ndindex(2, 3):
        error = np.sum((projected[:, :, s, t] - kernel[:, :, s, t]) ** 2)
        assert error == pytest.approx(best_by_enumeration(kernel[:, :, s, t]), rel=1e-4)


def test_appuswamy_projection_is_idempotent_and_has_at_most_four_strengths():
    kernel = np.random.default_rng(1).normal(size=(5, 4, 3, 4)).astype("float32")
    projected = ops.convert_to_numpy(project_s4(kernel))
    np.testing.assert_allclose(project_s4(projected), projected, atol=1e-6)
    for s, t in np.ndindex(3, 4):
        values = projected[:, :, s, t]
        assert len(np.unique(values[values != 0].round(6))) <= 4


def test_appuswamy_identity_pair_gives_one_strength_times_the_mask():
    mask = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]])
    kernel = (0.7 * mask)[:, :, None, None].astype("float32")
    np.testing.assert_allclose(project_s4(kernel), kernel, atol=1e-6)


def test_appuswamy_toeplitz_matrix_of_a_filter_has_at_most_four_values():
    kernel = np.random.default_rng(2).normal(size=(3, 3, 1, 1)).astype("float32")
    projected = ops.convert_to_numpy(project_s4(kernel))
    unit = np.eye(36, dtype="float32").reshape(36, 6, 6, 1)
    toeplitz = ops.convert_to_numpy(
        ops.conv(unit, projected, padding="valid", data_format="channels_last")
    ).reshape(36, 16)
    assert len(np.unique(toeplitz[toeplitz != 0].round(5))) <= 4


def test_zeros_stay_zeros():
    assert not np.any(ops.convert_to_numpy(project_s4(np.zeros((3, 3, 2, 2), "float32"))))
