"""make_compact: trained 3x3 convolutions become fitted blocks."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.models import make_compact

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    """Convolutions of all kinds: strided, padded or not, normalised, with a shortcut."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    y = layers.Conv2D(16, 3, padding="same", use_bias=False, name="normed")(x)
    y = layers.ReLU()(layers.BatchNormalization(momentum=0.8, name="norm")(y))
    z = layers.Conv2D(16, 3, padding="same", activation="relu", name="inner")(y)
    y = layers.Add()([y, z])
    y = layers.Conv2D(12, 3, 2, activation="relu", name="strided")(y)
    y = layers.Conv2D(12, 1, name="pointwise")(y)
    outputs = layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D()(y))
    model = keras.Model(inputs, outputs)
    for _ in range(20):
        # Moving averages as trained ones are.
        model(X, training=True)
    return model


def predict(model, x=X):
    return keras.ops.convert_to_numpy(model(x))


def error(new, model):
    wanted = predict(model)
    return np.square(predict(new) - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()


def test_only_3x3_convolutions_of_many_channels_are_replaced_and_full_rank_is_exact(model):
    before = model.get_weights()
    new = make_compact(model)
    for layer in model.layers[1:]:
        replaced = layer.name in ("normed", "inner", "strided")
        assert isinstance(new.get_layer(layer.name), keras.Model) == replaced
        assert new.get_layer(layer.name).output.shape == layer.output.shape
    exact = make_compact(model, depth_multiplier=9, layers=["normed", "inner", "strided"])
    np.testing.assert_allclose(predict(exact), predict(model), rtol=1e-3, atol=1e-4)
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    np.testing.assert_array_equal(
        new.get_layer("norm").get_weights()[0], model.get_layer("norm").get_weights()[0]
    )


@pytest.mark.parametrize("block", ["depthwise_separable", "fire", "shuffle"])
def test_data_makes_a_better_fit_and_macs_fall(model, block):
    blind = make_compact(model, block)
    seen = make_compact(model, block, data=X, verbose=0)
    assert error(seen, model) < 0.8 * error(blind, model)
    assert kc.profile.macs(seen) == kc.profile.macs(blind) < 0.6 * kc.profile.macs(model)


def test_distillation_comes_nearer_and_keeps_what_is_compiled(model, tmp_path):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fitted = make_compact(model, data=X, verbose=0)
    options = {"epochs": 40, "batch_size": 16, "temperature": None, "learning_rate": 1e-2}
    distilled = make_compact(model, data=X, distill=options, verbose=0)
    assert error(distilled, model) < 0.5 * error(fitted, model)
    assert distilled.compiled and isinstance(distilled.optimizer, keras.optimizers.SGD)
    assert distilled.trainable and model.trainable
    if keras.backend.backend() == "tensorflow":
        lite = kc.export.to_tflite(distilled, tmp_path / "small.tflite")
        np.testing.assert_allclose(lite.predict(X), predict(distilled), rtol=1e-3, atol=1e-4)


def test_sequential_and_nested_models():
    layers = keras.layers
    conv = layers.Conv2D(8, 3, padding="same", name="conv")
    inner = keras.Sequential([keras.Input((6, 6, 8)), conv], name="inner")
    model = keras.Sequential([keras.Input((6, 6, 8)), inner, layers.Conv2D(8, 3, name="last")])
    new = make_compact(model, layers=["conv", "last"], depth_multiplier=8)
    assert type(new) is keras.Sequential
    x = RNG.normal(size=(4, 6, 6, 8)).astype("float32")
    np.testing.assert_allclose(predict(new, x), predict(model, x), atol=1e-4)
    opened = kc.pruning.remove_channels(new, {"inner/conv/conv_pointwise": [0, 2, 5]})
    assert opened.get_layer("inner").output_shape[-1] == 3


def test_bad_arguments_are_refused(model):
    with pytest.raises(ValueError, match="`block` must be one of.*Did you mean 'depthwise_sep"):
        make_compact(model, "depthwise")
    with pytest.raises(ValueError, match="has no option 'rank'.* It has: depth_multiplier"):
        make_compact(model, rank=2)
    with pytest.raises(ValueError, match="'pointwise'.*no layer that has a compact form"):
        make_compact(model, layers="pointwise")
    with pytest.raises(ValueError, match="No layer matches 'conv9'"):
        make_compact(model, layers="conv9")
    with pytest.raises(ValueError, match="`distill` needs samples"):
        make_compact(model, distill=3)
    with pytest.raises(ValueError, match="`distill` must be one of 'epochs'.*got distill='epoch'"):
        make_compact(model, data=X, distill={"epoch": 3})
    small = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match="reads at least 8 channels and becomes cheaper"):
        make_compact(small)
