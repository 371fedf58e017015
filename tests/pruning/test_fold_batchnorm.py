"""`fold_batchnorm`: fewer layers, the same outputs."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc
from keras_compress.layers.fake_quant_kernel import batch_norm_affine
from tests.pruning.surgery.common import outputs, randomize, samples

fold = kc.pruning.fold_batchnorm


def norm(**kwargs):
    return layers.BatchNormalization(**kwargs)


def sequence(shape, *parts):
    return keras.Sequential([keras.Input(shape), *parts])


def count(model):
    flat = list(model._flatten_layers(include_self=False))
    return sum(isinstance(layer, layers.BatchNormalization) for layer in flat)


IMAGE, LINE, VOLUME = (8, 8, 4), (8, 4), (4, 5, 4, 2)
BEHIND = {
    "dense": (IMAGE, lambda: layers.Dense(5)),
    "conv1d": (LINE, lambda: layers.Conv1D(5, 3, padding="causal")),
    "conv2d": (IMAGE, lambda: layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)),
    "conv3d": (VOLUME, lambda: layers.Conv3D(5, 2)),
    "grouped": (IMAGE, lambda: layers.Conv2D(6, 3, groups=2)),
    "depthwise1d": (LINE, lambda: layers.DepthwiseConv1D(3, depth_multiplier=3)),
    "depthwise": (IMAGE, lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)),
    "separable1d": (LINE, lambda: layers.SeparableConv1D(5, 3)),
    "separable": (IMAGE, lambda: layers.SeparableConv2D(5, 3, padding="same")),
    "transposed1d": (LINE, lambda: layers.Conv1DTranspose(5, 3, strides=2)),
    "transposed": (IMAGE, lambda: layers.Conv2DTranspose(5, 3, strides=2, use_bias=False)),
    "transposed3d": (VOLUME, lambda: layers.Conv3DTranspose(3, 2)),
}


def check(model, left=0):
    """Folds a model of random statistics, and compares the outputs."""
    randomize(model)
    x, before = samples(model), model.get_weights()
    folded = fold(model)
    assert count(folded) == left
    for a, b in zip(outputs(model, x), outputs(folded, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    return folded


@pytest.mark.parametrize("name", BEHIND)
def test_deep_rebirth_folded_outputs_are_equal(name):
    shape, make = BEHIND[name]
    kernel = make()
    folded = check(sequence(shape, kernel, norm(), layers.ReLU()))
    assert [layer.name for layer in folded.layers][0] == kernel.name
    assert folded.layers[0].use_bias


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"epsilon": 0.1}])
def test_weights_equal_the_formula(options):
    model = randomize(sequence((4,), layers.Dense(3), norm(**options)))
    kernel, bias = (keras.ops.convert_to_numpy(v) for v in model.layers[0].weights)
    batch = model.layers[1]
    gamma, beta, mean, variance = (
        otherwise if v is None else keras.ops.convert_to_numpy(v).astype("float64")
        for v, otherwise in (
            (batch.gamma, 1.0),
            (batch.beta, 0.0),
            (batch.moving_mean, None),
            (batch.moving_variance, None),
        )
    )
    scale = gamma / np.sqrt(variance + batch.epsilon)
    new_kernel, new_bias = fold(model).get_weights()
    np.testing.assert_allclose(new_kernel, kernel * scale, rtol=1e-6)
    np.testing.assert_allclose(new_bias, (bias - mean) * scale + beta, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda: layers.Dense(5, activation="tanh"),
        lambda: layers.Conv2D(5, 3, strides=2, use_bias=False),
        lambda: layers.Conv2D(5, 1, padding="same", activation="relu"),
    ],
)
def test_a_norm_before_a_kernel_that_pads_nothing_goes_into_it(kernel):
    check(sequence(IMAGE, layers.ReLU(), norm(), kernel()))
    # On both sides of one kernel.
    check(sequence(IMAGE, norm(), layers.Conv2D(3, 3), norm(), layers.Conv2D(2, 3), norm()))


def test_norms_that_cannot_be_folded_stay():
    check(sequence(IMAGE, layers.Conv2D(5, 3, activation="relu"), norm(), layers.ReLU()), 1)
    check(sequence(IMAGE, norm(), layers.Conv2D(5, 3, padding="same")), 1)
    check(sequence(IMAGE, layers.Conv2D(5, 3), norm(axis=1)), 1)
    x = keras.Input(IMAGE)
    y = layers.Conv2D(5, 3)(x)
    # Something else reads the sums before the normalisation.
    check(keras.Model(x, [norm()(y), layers.ReLU()(y)]), 1)
    check(keras.Model(x, [norm()(y), y]), 1)
    # One of the readers pads.
    y = norm()(layers.ReLU()(x))
    check(keras.Model(x, [layers.Conv2D(2, 3)(y), layers.Conv2D(2, 3, padding="same")(y)]), 1)
    y = norm()(layers.ReLU()(x))
    check(keras.Model(x, [layers.Conv2D(2, 3)(y), layers.Conv2D(2, 3)(y)]), 0)


def test_under_residual_additions():
    inputs = keras.Input((8, 8, 3))
    x = norm()(layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs))
    x = layers.ReLU()(x)
    for _ in range(2):
        y = norm()(layers.Conv2D(8, 3, padding="same")(x))
        y = norm()(layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(y)))
        x = layers.ReLU()(layers.Add()([x, y]))
    y = norm()(layers.Conv2D(4, 1)(x))
    outputs = layers.Dense(3)(layers.GlobalAveragePooling2D()(y + norm()(layers.Conv2D(4, 1)(x))))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    folded = check(model)
    assert folded.compiled and type(folded) is type(model)


def test_nested_models_and_across_their_borders():
    backbone = sequence(IMAGE, layers.Conv2D(6, 3, padding="same"), norm(), layers.Conv2D(5, 3))
    only_a_norm = sequence((6, 6, 5), norm())
    x = keras.Input((6, 6, 5))
    functional_norm = keras.Model(x, norm()(x))
    for nested in (norm(), only_a_norm, functional_norm):
        inputs = keras.Input(IMAGE)
        model = keras.Model(inputs, layers.ReLU()(nested(backbone(inputs))))
        folded = check(model)
        assert folded.layers[1].name == backbone.name
    check(sequence(IMAGE, backbone, only_a_norm, layers.Flatten(), layers.Dense(2)))


def test_shared_layers():
    first, second = keras.Input(IMAGE), keras.Input(IMAGE)
    conv, shared = layers.Conv2D(4, 3), norm()
    both = [shared(conv(first)), shared(conv(second))]
    folded = check(keras.Model([first, second], layers.Add()(both)))
    assert len(folded.layers) == 4
    # A layer with another neighbour at each call, a normalisation of two layers.
    conv = layers.Conv2D(4, 3)
    check(keras.Model([first, second], [norm()(conv(first)), norm()(conv(second))]), 2)
    shared, other = norm(), layers.Conv2D(4, 3)
    check(keras.Model([first, second], [shared(conv(first)), shared(other(second))]))
    nested = sequence(IMAGE, layers.Conv2D(4, 3), norm())
    check(keras.Model([first, second], layers.Add()([nested(first), nested(second)])))


def test_channels_first():
    model = sequence((4, 8, 8), layers.Conv2D(5, 3, data_format="channels_first"), norm(axis=1))
    folded = fold(randomize(model))
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    scale = keras.ops.convert_to_numpy(batch_norm_affine(model.layers[1])[0])
    np.testing.assert_allclose(folded.get_weights()[0], kernel * scale, rtol=1e-6)
    assert count(folded) == 0


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50"])
def test_applications(name):
    model = getattr(keras.applications, name)((32, 32, 3), weights=None, classes=3)
    check(model)


def test_folding_again_changes_nothing_and_masked_models_are_refused():
    model = randomize(sequence((4,), layers.Dense(3), norm()))
    folded = fold(model)
    for a, b in zip(folded.get_weights(), fold(folded).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"fold_batchnorm: .* under a pruning mask.*strip"):
        fold(kc.pruning.prune_weights(model, "magnitude", 0.5))
