"""SearchStep: Hwang and Sung's search of steps by the loss of the network."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.quantizers import SearchStep, Uniform, UniformL2

FACTORS = (0.5, 0.75, 1.25, 1.5)


def network():
    """A network whose largest weights matter least, since they meet the smallest inputs."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(9, activation="relu", name="first"),
            keras.layers.Dense(4, name="second"),
        ]
    )
    rng = np.random.default_rng(2)
    scales = np.where(np.arange(12) < 3, 4.0, 1.0)[:, None]
    model.get_layer("first").kernel.assign(rng.normal(size=(12, 9)) * scales)
    model.get_layer("second").kernel.assign(rng.normal(size=(9, 4)))
    x = (rng.normal(size=(80, 12)) / scales.T**2).astype("float32")
    return model, (x, model.predict(x, verbose=0))


def rounded(w, step, levels):
    return np.sign(w) * step * np.minimum(np.floor(np.abs(w) / step + 0.5), (levels - 1) // 2)


def loss_of(kernels, data):
    """The mean squared error of the network with these kernels, in numpy."""
    x, y = data
    return np.mean((np.maximum(x @ kernels[0], 0) @ kernels[1] - y) ** 2)


@pytest.mark.parametrize("levels", [3, 7])
def test_hwang_steps_are_those_of_an_exhaustive_search_layer_by_layer(levels):
    model, data = network()
    latent = [ops.convert_to_numpy(layer.kernel) for layer in model.layers]
    fitted = [float(UniformL2(levels).encode(w).scale) for w in latent]
    kernels = [rounded(w, step, levels) for w, step in zip(latent, fitted, strict=True)]
    steps, losses = [], [loss_of(kernels, data)]
    for i, w in enumerate(latent):
        tried = {}
        for factor in (1.0, *FACTORS):
            kernels[i] = rounded(w, factor * fitted[i], levels)
            tried[factor] = loss_of(kernels, data)
        best = min(tried, key=tried.get)
        kernels[i] = rounded(w, best * fitted[i], levels)
        steps.append(best * fitted[i])
        losses.append(tried[best])

    quantized = kc.quantizers.apply(model, UniformL2(levels))
    search = SearchStep(quantized, data, loss="mse", factors=FACTORS)
    better = search.search()
    np.testing.assert_allclose([row.step for row in search.rows], steps, rtol=1e-5)
    np.testing.assert_allclose([row.loss for row in search.rows], losses[1:], rtol=1e-3)
    np.testing.assert_allclose([row.loss_before for row in search.rows], losses[:-1], rtol=1e-3)
    assert losses[-1] < losses[0]
    x, y = data
    found = np.mean((better.predict(x, verbose=0) - y) ** 2)
    np.testing.assert_allclose(found, losses[-1], rtol=1e-3)


def test_loss_never_rises_and_the_fitted_step_is_kept_where_it_is_best():
    model, data = network()
    quantized = kc.quantizers.apply(model, UniformL2(255))
    search = SearchStep(quantized, data, loss="mse", factors=(0.1, 10.0))
    search.search()
    for row in search.rows:
        assert row.step == row.fitted and row.loss == row.loss_before


def test_steps_stay_in_training_and_in_files(tmp_path):
    model, (x, y) = network()
    quantized = kc.quantizers.apply(model, UniformL2(3))
    search = SearchStep(quantized, (x, y), loss="mse", factors=FACTORS)
    better = search.search()
    before = better.get_layer("first").reconstruct_kernel()
    better.compile(keras.optimizers.Adam(0.05), loss="mse")
    better.fit(x, y, epochs=5, verbose=0)
    better.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for row in search.rows:
        kernel = again.get_layer(row.name).reconstruct_kernel()
        assert set(np.unique(kernel)) <= set(np.float32([-row.step, 0, row.step]))
    assert np.any(better.get_layer("first").reconstruct_kernel() != before)


def test_everything_else_is_kept_and_the_model_not_changed():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="stem")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise", depth_multiplier=2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))
    model.compile(loss="mse")
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 8, 8, 3)).astype("float32"), rng.normal(size=(20, 4))
    small = kc.quantizers.apply(model, UniformL2(3), layers=["stem", "depthwise"])
    small = kc.quantizers.apply(small, Uniform(4), layers="logits")
    expected = small.predict(data[0], verbose=0)
    search = SearchStep(small, data)
    better = search.search()
    assert [row.name for row in search.rows] == ["stem", "depthwise"]
    assert better.get_layer("logits").kernel_quantizer.bits == 4
    for old, new in zip(small.weights, better.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(small.predict(data[0], verbose=0), expected)
    assert small.get_layer("stem").kernel_quantizer.step is None


def test_input_quantizers_are_part_of_the_loss():
    model, (x, y) = network()
    layer = kc.layers.QuantDense.from_layer(
        model.get_layer("first"), kernel_quantizer=UniformL2(3), input_quantizer="sign"
    )
    small = kc.convert(model, {"first": lambda _: layer})
    search = SearchStep(small, (x, y), loss="mse", factors=(1.5,))
    better = search.search()
    loss = np.mean((better.predict(x, verbose=0) - y) ** 2)
    np.testing.assert_allclose(search.rows[-1].loss, loss, rtol=1e-5)
    assert type(better.get_layer("first").input_quantizer).__name__ == "Sign"


def test_rows_print_as_a_table():
    model, data = network()
    search = SearchStep(kc.quantizers.apply(model, UniformL2(3)), data, loss="mse", factors=(0.9,))
    search.search()
    lines = repr(search).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["first", "second"]
    assert "<table" in search._repr_html_()


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"data": np.ones((3, 12))}, r"`data` must be a pair \(x, y\)"),
        ({"data": (np.ones((3, 12)), np.ones((2, 4)))}, r"the same number; got \[2, 3\]"),
        ({"data": (np.ones((0, 12)), np.ones((0, 4)))}, "at least one sample"),
        ({"loss": None}, "is not compiled with one loss"),
        ({"factors": (0.9, 0.0)}, r"`factors\[1\]` must be a number in \(0"),
    ],
)
def test_bad_arguments_say_what_to_do(changes, message):
    model, data = network()
    arguments = {"model": kc.quantizers.apply(model, UniformL2(3)), "data": data, "loss": "mse"}
    with pytest.raises(ValueError, match=message):
        SearchStep(**{**arguments, **changes})


def test_models_without_steps_to_search_are_refused():
    model, data = network()
    for other in (model, kc.quantizers.apply(model, UniformL2(3, axis=-1))):
        with pytest.raises(ValueError, match="has no Quant layer whose kernel_quantizer is a"):
            SearchStep(other, data, loss="mse")


def test_nan_is_named():
    model, (x, y) = network()
    quantized = kc.quantizers.apply(model, UniformL2(3))
    for data in ((x * np.nan, y), (x, y * np.inf)):
        with pytest.raises(ValueError, match="`data` has values that are not finite"):
            SearchStep(quantized, data, loss="mse")
    quantized.get_layer("second").bias.assign([np.nan] * 4)
    with pytest.raises(ValueError, match="is nan; look for NaN in its weights"):
        SearchStep(quantized, (x, y), loss="mse").search()
