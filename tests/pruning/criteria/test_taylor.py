"""`Taylor`: first order of the loss's change without a map."""

import keras
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_digits

import keras_compress as kc

RNG = np.random.default_rng(0)
Taylor, Oracle = kc.pruning.criteria.Taylor, kc.pruning.criteria.Oracle


def conv_model(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(5, 3, activation="relu", name="first"),
            keras.layers.Conv2D(4, 3, activation="relu", name="second"),
            keras.layers.Flatten(),
            keras.layers.Dense(1, name="out"),
        ]
    )


def linear_loss(targets, outputs):
    return keras.ops.mean(outputs * targets, -1)


def test_equals_the_oracle_for_a_loss_that_is_linear_in_the_map():
    model = conv_model()
    x = RNG.normal(size=(12, 6, 6, 2)).astype("float32")
    # Maps are not negative: with weights of one sign the samples' changes add up.
    out = model.get_layer("out")
    out.set_weights([np.abs(RNG.normal(size=(16, 1))), np.zeros(1)])
    data = (x, np.ones((12, 1), "float32"))
    options = {"layers": "second", "data": data, "loss": linear_loss}
    oracle = Oracle()(model, **options)["second"]
    taylor = Taylor(normalize="none")(model, **options)["second"]
    # The mean over the 4 positions takes the place of their sum.
    np.testing.assert_allclose(taylor * 4, oracle, rtol=1e-4)


def test_the_absolute_value_is_of_each_sample_after_the_mean_over_positions():
    model = conv_model()
    x = RNG.normal(size=(12, 6, 6, 2)).astype("float32")
    targets = RNG.normal(size=(12, 1)).astype("float32")
    maps = keras.ops.convert_to_numpy(model.layers[1](model.layers[0](x)))
    # d(y * (w . z)) / dz = y w, whatever the map.
    weights = keras.ops.convert_to_numpy(model.get_layer("out").kernel).reshape(2, 2, 4)
    change = (maps * weights * targets[:, None, None]).mean((1, 2))
    options = {"layers": "second", "data": (x, targets), "loss": linear_loss, "batch_size": 5}
    scores = Taylor(normalize="none")(model, **options)["second"]
    np.testing.assert_allclose(scores, np.abs(change).mean(0), rtol=1e-4)
    assert not np.allclose(scores, np.abs(change.mean(0)), rtol=0.1)
    second = Taylor(order=2, normalize="none")(model, **options)["second"]
    np.testing.assert_allclose(second, (change**2).mean(0) / 2, rtol=1e-4)


def test_l2_norm_of_each_layers_scores_is_1():
    model = conv_model()
    x, y = RNG.normal(size=(12, 6, 6, 2)), RNG.normal(size=(12, 1))
    model.compile(loss="mse")
    for scores in Taylor()(model, data=(x, y)).values():
        np.testing.assert_allclose(np.linalg.norm(scores), 1, rtol=1e-6)


def test_flops_weight_takes_the_cost_of_a_map():
    model = conv_model()
    x, y = RNG.normal(size=(12, 6, 6, 2)), RNG.normal(size=(12, 1))
    options = {"data": (x, y), "loss": "mse"}
    plain = Taylor()(model, **options)
    cheap = Taylor(flops_weight=10.0)(model, **options)
    # first: 4 x 4 positions, 3 x 3 x 2 weights a map; second: 2 x 2 and 3 x 3 x 5.
    for name, macs in {"first": 16 * 18, "second": 4 * 45, "out": 16}.items():
        np.testing.assert_allclose(cheap[name], plain[name] - 10 * 2e-6 * macs, rtol=1e-6)


def test_ranks_more_like_the_oracle_than_magnitude_does():
    images, labels = load_digits(return_X_y=True)
    x, y = (images / 16).reshape(-1, 8, 8, 1)[:512].astype("float32"), labels[:512]
    ranks = {"taylor": [], "l1": []}
    # One net says little: the mean of two.
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(12, 3, activation="relu", name="conv1"),
                keras.layers.Conv2D(12, 3, activation="relu", name="conv2"),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.005), loss)
        model.fit(x, y, batch_size=32, epochs=8, verbose=0)
        oracle = Oracle()(model, "conv*", (x, y), batch_size=512)
        for name, found in ranks.items():
            scores = kc.pruning.criteria.get(name)(model, "conv*", (x, y))
            found += [scipy.stats.spearmanr(scores[k], oracle[k]).statistic for k in oracle]
    assert np.mean(ranks["taylor"]) > np.mean(ranks["l1"]) + 0.1
    assert np.mean(ranks["taylor"]) > 0.7


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="`order` must be an integer from 1 to 2; got order=3"):
        Taylor(order=3)
    with pytest.raises(ValueError, match="`flops_weight`"):
        Taylor(flops_weight=-1)
    x = np.zeros((2, 6, 6, 2))
    with pytest.raises(ValueError, match="this needs targets"):
        Taylor()(conv_model(), data=x, loss="mse")
    with pytest.raises(ValueError, match="not compiled with one loss"):
        Taylor()(conv_model(), data=(x, np.zeros((2, 1))))
