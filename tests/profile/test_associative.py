"""Associative convolution of Network Sketching: what it computes, and what it saves."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

import keras_compress as kc
from keras_compress.profile.associative import spanning_tree

RNG = np.random.default_rng(0)


def walk(parents):
    """Filters in an order in which each comes after the one that it is computed from."""
    done, order = {-1}, []
    while len(order) < len(parents):
        ready = [i for i, p in enumerate(parents) if p in done and i not in done]
        assert ready
        done.update(ready)
        order.extend(ready)
    return order


def test_sketching_associative_result_is_the_direct_binary_convolution():
    """Each filter's response from its neighbour's, over integers, and what it took counted."""
    kernel = RNG.normal(size=(3, 3, 4, 10)).astype("float32")
    codes = kc.quantizers.ResidualSign(3).encode(kernel).ints.astype("int64")
    filters = np.concatenate([(codes >> j & 1) * 2 - 1 for j in range(3)], axis=-1)
    image = RNG.integers(-100, 100, size=(6, 6, 4))
    patches = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (0, 1))
    patches = patches.transpose(0, 1, 3, 4, 2).reshape(-1, 36)
    flat = filters.reshape(36, 30)
    direct = patches @ flat
    parents, adds = spanning_tree(flat.T)
    shared = np.empty_like(direct)
    for j in walk(parents):
        if parents[j] < 0:
            shared[:, j] = patches @ flat[:, j]
            assert adds[j] == 36 - 1
            continue
        differs = flat[:, j] != flat[:, parents[j]]
        difference = patches[:, differs] @ flat[differs, j]
        shared[:, j] = shared[:, parents[j]] + 2 * difference
        assert adds[j] == differs.sum()
    np.testing.assert_array_equal(shared, direct)
    # The same as the convolution of Keras.
    layer = keras.layers.Conv2D(30, 3, use_bias=False)
    layer.build((None, 6, 6, 4))
    layer.kernel.assign(filters)
    outputs = ops.convert_to_numpy(layer(image[None].astype("float32")))
    np.testing.assert_allclose(outputs.reshape(16, 30), shared)


@pytest.mark.parametrize(("count", "size"), [(1, 9), (12, 7), (60, 25), (90, 288)])
def test_spanning_tree_is_minimal(count, size):
    """Against scipy's, with a node for nothing; edges are longer by 1, as 0 is none to scipy."""
    signs = np.sign(RNG.normal(size=(count, size)))
    graph = np.full((count + 1, count + 1), size - 1.0)
    graph[:count, :count] = squareform(pdist(signs, "hamming") * size) if count > 1 else 0
    expected = minimum_spanning_tree(np.triu(graph + 1, 1)).sum() - count
    parents, adds = spanning_tree(signs)
    np.testing.assert_allclose(adds.sum(), expected)
    assert len(walk(parents)) == count


def test_sketching_additions_of_the_tree_are_at_most_the_naive_ones():
    model = keras.Sequential(
        [
            keras.Input((9, 9, 4)),
            keras.layers.Conv2D(8, 3, strides=2, groups=2, name="grouped"),
            keras.layers.Conv2D(6, 1, padding="same", name="pointwise"),
            keras.layers.Flatten(),
            keras.layers.Dense(40, name="dense"),
        ]
    )
    sketched = kc.quantizers.apply(model, kc.quantizers.ResidualSign(2))
    rows = {row.name: row for row in kc.profile.associative_adds(sketched)}
    assert list(rows) == ["grouped", "pointwise", "dense"]
    sizes = {"grouped": (16, 18, 16), "pointwise": (12, 8, 16), "dense": (80, 96, 1)}
    for name, (filters, size, positions) in sizes.items():
        row = rows[name]
        assert row.filters == filters
        assert row.naive == positions * filters * (size - 1)
        assert 0 < row.associative <= row.naive
    # 12 filters of 8 signs: less than half of the signs differ from a neighbour's.
    assert rows["pointwise"].associative < 0.5 * rows["pointwise"].naive


def test_filters_of_different_groups_share_nothing():
    layer = kc.layers.QuantConv2D(
        4, 3, groups=2, kernel_quantizer=kc.quantizers.ResidualSign(1), use_bias=False
    )
    model = keras.Sequential([keras.Input((3, 3, 2)), layer])
    layer.kernel.assign(np.ones((3, 3, 1, 4)))
    (row,) = kc.profile.associative_adds(model)
    assert (row.naive, row.associative) == (4 * 8, 2 * 8)


def test_opposite_filters_are_computed_from_nothing():
    signs = np.array([[1, 1, 1], [-1, -1, -1]])
    parents, adds = spanning_tree(signs)
    assert parents.tolist() == [-1, -1] and adds.tolist() == [2, 2]


def test_a_shared_layer_counts_every_call():
    layer = kc.layers.QuantDense(5, kernel_quantizer=kc.quantizers.ResidualSign(1))
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layer(layer(inputs)))
    (row,) = kc.profile.associative_adds(model)
    assert row.naive == 2 * 5 * 4


def test_a_model_without_sketched_layers_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="has no dense or convolution layer with a ResidualSign"):
        kc.profile.associative_adds(model)
