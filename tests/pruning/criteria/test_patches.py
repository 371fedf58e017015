"""`PatchSampler` and `Contributions`: rows and inner products equal the layers' own arithmetic."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.pruning.criteria import contributions
from keras_compress.pruning.criteria.patches import PatchSampler
from keras_compress.pruning.criteria.reader_criterion import kernel_matrix, lowered_readers
from keras_compress.samples import Samples

RNG = np.random.default_rng(0)


def sampled(model, x, **options):
    """Rows and outputs of the model's last layer with channels that may go, and its part."""
    graph = kc.pruning.ChannelGraph(model)
    part = graph.consumers[-1]
    (lowered,) = lowered_readers(graph, [part], "test")
    sampler = PatchSampler(Samples(model, x, batch_size=3), **options)
    rows = np.concatenate([rows for _, (rows,) in sampler.rows(graph.graph, [lowered])])
    return part, rows, kernel_matrix(lowered, part)


LAYERS = {
    "same strides": ((7, 6, 3), keras.layers.Conv2D(4, (3, 2), strides=2, padding="same")),
    "valid dilated": ((8, 9, 3), keras.layers.Conv2D(4, 3, dilation_rate=2)),
    "causal": ((7, 3), keras.layers.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "3d": ((4, 5, 4, 3), keras.layers.Conv3D(4, 2, padding="same")),
    "dense on positions": ((5, 6, 3), keras.layers.Dense(4)),
    "dense": ((6,), keras.layers.Dense(4)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_rows_times_kernel_are_the_outputs_at_all_positions(case):
    shape, layer = LAYERS[case]
    layer = layer.__class__.from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape), keras.layers.Activation("relu"), layer])
    layer.bias.assign(RNG.normal(size=4))
    x = RNG.normal(size=(5, *shape)).astype("float32")
    _, rows, matrix = sampled(model, x, positions=1000)
    outputs = keras.ops.convert_to_numpy(model(x)).reshape(-1, 4)
    found = rows @ matrix + keras.ops.convert_to_numpy(layer.bias)
    # The order of the samples is that of the draw: all are there.
    np.testing.assert_allclose(found, outputs, atol=1e-5)


def test_few_positions_are_different_ones_spread_over_the_map():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 1, use_bias=False)])
    # The value of each pixel says where it lies.
    x = np.tile(np.arange(64.0).reshape(1, 8, 8, 1), (50, 1, 1, 1)).astype("float32")
    _, rows, _ = sampled(model, x, images=20, positions=4)
    assert rows.shape == (80, 1)
    # One of each quarter of the positions.
    np.testing.assert_array_equal(np.sort(rows.reshape(20, 4)) // 16, np.tile(range(4), (20, 1)))
    assert len(np.unique(rows)) > 30


def test_every_sample_is_as_likely_and_drawn_once():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    x = np.arange(20.0)[:, None]
    counts = np.zeros(20)
    for seed in range(300):
        _, rows, _ = sampled(model, x, images=5, seed=seed)
        assert len(np.unique(rows)) == 5
        counts[rows[:, 0].astype(int)] += 1
    # Binomial of mean 75 and deviation 7.5.
    assert abs(counts - 75).max() < 30


def test_places_do_not_depend_on_channels():
    def positions(channels):
        inputs = keras.Input((6, 6, 1))
        x = keras.layers.Conv2D(channels, 1, kernel_initializer="ones")(inputs)
        model = keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(x))
        x = np.random.default_rng(1).normal(size=(30, 6, 6, 1)).astype("float32")
        _, rows, _ = sampled(model, x, images=7, positions=3)
        return rows[:, ::channels]

    np.testing.assert_allclose(positions(1), positions(5))


@pytest.mark.parametrize("wide", [False, True])
def test_products_equal_those_of_contributions_written_out(wide, monkeypatch):
    if wide:
        monkeypatch.setattr(contributions, "_WIDEST", 1)
    matrix = RNG.normal(size=(2 * 5, 3))
    channels = np.array([4, 0, 4, 7, 0])
    one = contributions.Contributions(matrix, channels)
    rows = RNG.normal(size=(11, 10))
    one.update(rows[:4])
    one.update(rows[4:])
    each = np.tile(channels, 2)
    written = [rows[:, each == number] @ matrix[each == number] for number in (0, 4, 7)]
    expected = [[np.sum(a * b) for a in written] for b in written]
    np.testing.assert_allclose(one.products(), expected, rtol=1e-10)
    np.testing.assert_array_equal(one.numbers, [0, 4, 7])
    np.testing.assert_array_equal(one.free, [False, True, True])
