"""Masks from scores: exact counts, ties, granularities."""

import numpy as np
import pytest

from keras_compress.pruning import magnitude_mask, mask_from_scores, masks


def kernel(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.333, 0.5, 0.9, 0.999])
def test_weight_masks_keep_the_largest_and_count_exactly(sparsity):
    w = kernel(17, 13)
    mask = magnitude_mask(w, sparsity)
    order = np.argsort(np.abs(w), axis=None)
    drop = min(int(np.floor(sparsity * w.size + 0.5)), w.size - 1)
    assert not mask.ravel()[order[:drop]].any() and mask.ravel()[order[drop:]].all()


@pytest.mark.parametrize("order", ["random", "sorted", "repeated", "zeros"])
def test_large_masks_are_exact_whatever_the_order(order):
    """Large enough for the threshold to be looked for with a sample."""
    w = np.abs(kernel(300, 400))
    if order == "sorted":
        w = np.sort(w, axis=None).reshape(w.shape)
    elif order == "repeated":
        w = np.round(w, 1)
    elif order == "zeros":
        w *= kernel(300, 400, seed=1) > 0
    for sparsity in (0.01, 0.5, 0.8, 0.999):
        drop = int(np.floor(sparsity * w.size + 0.5))
        mask = magnitude_mask(w, sparsity)
        assert np.count_nonzero(~mask) == drop
        assert w[~mask].max() <= w[mask].min()


def test_weights_that_diverged_stay():
    w = np.array([[1.0, np.nan, 3.0, 2.0]], "float32")
    np.testing.assert_array_equal(magnitude_mask(w, 0.5), [[0, 1, 1, 0]])


def test_ties_go_in_memory_order():
    w = np.array([[1, 1, 1, 2], [1, 1, 2, 2]], "float32")
    want = [[0, 0, 0, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(magnitude_mask(w, 3 / 8), want)
    np.testing.assert_array_equal(magnitude_mask(np.zeros((2, 2)), 0.5), [[0, 0], [1, 1]])


@pytest.mark.parametrize(
    ("granularity", "block_size"), [("weight", None), ("block", (2, 2)), ("filter", None)]
)
def test_no_layer_is_emptied(granularity, block_size):
    mask = magnitude_mask(kernel(3, 3), 0.99, granularity, block_size)
    assert mask.any()


def test_filter_masks_by_mean_magnitude():
    w = kernel(3, 3, 5, 10)
    mask = magnitude_mask(w, 0.3, "filter")
    lowest = np.argsort(np.abs(w).sum((0, 1, 2)))[:3]
    assert not mask[..., lowest].any() and mask.sum() == 7 * 45
    depthwise = kernel(3, 3, 4, 2)
    mask = magnitude_mask(depthwise, 0.5, "filter", output_axes=(-2, -1))
    np.testing.assert_array_equal(mask.any((0, 1)), mask.all((0, 1)))
    assert mask.any((0, 1)).sum() == 4
    transposed = magnitude_mask(w, 0.4, "filter", output_axes=(-2,))
    assert transposed.any((0, 1, 3)).sum() == 3


def test_block_masks_by_mean_magnitude_also_at_the_edges():
    w = kernel(10, 7)
    mask = magnitude_mask(w, 0.5, "block", (4, 3))
    means = {(i, j): np.abs(w[i : i + 4, j : j + 3]).mean() for i in (0, 4, 8) for j in (0, 3, 6)}
    dropped = sorted(means, key=means.get)[:5]
    for i, j in means:
        block = mask[i : i + 4, j : j + 3]
        assert not block.any() if (i, j) in dropped else block.all()


def test_blocks_of_a_convolution_lie_in_its_matrix():
    w = kernel(3, 3, 4, 8)
    mask = magnitude_mask(w, 0.75, "block", (4, 4))
    np.testing.assert_array_equal(
        mask.reshape(36, 8), magnitude_mask(w.reshape(36, 8), 0.75, "block", (4, 4))
    )


@pytest.mark.parametrize("granularity", ["2:4", "1:4", "4:8"])
@pytest.mark.parametrize("shape", [(3, 3, 5, 4), (18, 6)])
def test_pattern_along_the_reduction_axis(granularity, shape):
    kept, group = map(int, granularity.split(":"))
    w = kernel(*shape)
    mask = magnitude_mask(w, 1 - kept / group, granularity)
    flat, size = mask.reshape(-1, shape[-1]), np.abs(w).reshape(-1, shape[-1])
    whole = len(flat) // group * group
    for column in range(shape[-1]):
        for start in range(0, whole, group):
            part = slice(start, start + group)
            assert flat[part, column].sum() == kept
            largest = np.argsort(size[part, column])[-kept:]
            assert flat[part, column][largest].all()
    # A last group that is too short for the pattern stays dense.
    assert flat[whole:].all()


def test_pattern_ramp_takes_the_groups_that_lose_least():
    w = kernel(16, 3)
    mask = magnitude_mask(w, 0.25, "2:4")
    groups = np.abs(w).reshape(4, 4, 3).transpose(0, 2, 1).reshape(-1, 4)
    lost = np.sort(groups)[:, :2].sum(1)
    patterned = mask.reshape(4, 4, 3).transpose(0, 2, 1).reshape(-1, 4).sum(1) == 2
    np.testing.assert_array_equal(np.sort(np.flatnonzero(patterned)), np.sort(lost.argsort()[:6]))
    assert mask.mean() == 0.75


def test_ramps_are_monotone_once_weights_are_zeroed():
    for granularity, block in (("weight", None), ("2:4", None), ("block", (2, 2))):
        w = kernel(16, 8)
        before = np.ones(w.shape, bool)
        for step, sparsity in enumerate((0.1, 0.3, 0.4, 0.5)):
            mask = magnitude_mask(w, sparsity, granularity, block)
            assert not (mask & ~before).any()
            w = np.where(mask, w + 0.1 * kernel(16, 8, seed=step + 1), 0)
            before = mask


def test_pattern_that_cannot_give_the_sparsity():
    with pytest.raises(ValueError, match="0.5"):
        magnitude_mask(kernel(8, 8), 0.8, "2:4")
    with pytest.raises(ValueError, match="Set its final sparsity to 0.75"):
        masks.check_final_sparsity("1:4", 0.5)


def test_std_sparsity_is_share_below_quality_times_std():
    """Han et al. 2015: exactly the weights with |w| >= q std stay."""
    w = kernel(40, 30)
    mask = magnitude_mask(w, masks.std_sparsity(w, 1.2))
    np.testing.assert_array_equal(mask, np.abs(w) >= 1.2 * w.std())
    again = masks.std_sparsity(np.where(mask, w, 0), 0.7, mask)
    assert again == np.mean(np.abs(np.where(mask, w, 0)) < 0.7 * w[mask].std())


def test_scores_need_not_be_magnitudes():
    scores = -np.abs(kernel(6, 6))
    mask = mask_from_scores(scores, 0.5)
    assert scores[mask].min() >= scores[~mask].max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("row", None), "granularity"),
        (("filtre", None), "'filter'"),
        (("4:2", None), "0 < n < m"),
        (("block", None), "block_size"),
        (("block", (0, 2)), "block_size"),
        (("weight", (2, 2)), "block_size"),
    ],
)
def test_bad_granularities_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        masks.check_granularity(*arguments)
