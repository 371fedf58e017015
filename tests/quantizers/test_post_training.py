"""`kc.quantizers.apply`: trained models with quantised kernels."""

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.datasets import load_digits

import keras_compress as kc
from keras_compress.quantizers import StochasticTernary, Ternary, Uniform, UniformL2


def mixed_model():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, name="stem")(inputs)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, name="inner_fc")])
    x = inner(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


def kinds(model):
    leaves = kc.matching.leaf_layers(model)
    return {layer.name: type(layer).__name__ for layer in leaves if layer.weights}


def test_every_layer_that_has_a_quant_form_gets_it():
    model = mixed_model()
    small = kc.quantizers.apply(model, "uniform")
    assert kinds(small) == {
        "stem": "QuantConv2D",
        "stem_bn": "BatchNormalization",
        "depthwise": "QuantDepthwiseConv2D",
        "inner_fc": "QuantDense",
        "logits": "QuantDense",
    }
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    expected = model.predict(x, verbose=0)
    outputs = small.predict(x, verbose=0)
    np.testing.assert_allclose(outputs, expected, atol=0.02 * np.abs(expected).max())
    assert "QuantDense" not in kinds(model).values()


@pytest.mark.parametrize(
    "layers,chosen",
    [
        ("logits", {"logits"}),
        (["stem*", "inner_fc"], {"stem", "inner_fc"}),
        (keras.layers.Dense, {"inner_fc", "logits"}),
        (lambda layer: layer.name.endswith("wise"), {"depthwise"}),
    ],
)
def test_layers_are_chosen_among_those_that_have_a_quant_form(layers, chosen):
    small = kc.quantizers.apply(mixed_model(), Uniform(4), layers=layers)
    quant = {name for name, kind in kinds(small).items() if kind.startswith("Quant")}
    assert quant == chosen


def test_kernels_are_those_of_the_quantizer_and_everything_else_is_kept():
    model = mixed_model()
    small = kc.quantizers.apply(model, Ternary(axis=-1), layers="stem")
    kernel = ops.convert_to_numpy(model.get_layer("stem").kernel)
    expected = Ternary(axis=-1).encode(kernel).decode()
    np.testing.assert_array_equal(small.get_layer("stem").reconstruct_kernel(), expected)
    for old, new in zip(model.weights, small.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_each_layer_has_a_generator_of_its_own():
    small = kc.quantizers.apply(mixed_model(), StochasticTernary(seed=1))
    generators = [layer.kernel_quantizer.seed_generator for layer in (small.get_layer("stem"),)]
    generators.append(small.get_layer("logits").kernel_quantizer.seed_generator)
    assert generators[0] is not generators[1]


@pytest.fixture(scope="module")
def digits():
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    compile_model(model)
    model.fit(x[:1300], y[:1300], epochs=25, batch_size=32, verbose=0)
    return model, (x[:1300], y[:1300]), (x[1300:], y[1300:])


def compile_model(model, rate=3e-3):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=["accuracy"])


def accuracy(model, data):
    return model.evaluate(*data, verbose=0)[1]


def test_hwang_ternary_net_loses_directly_and_not_after_retraining(digits):
    model, train, test = digits
    small = kc.quantizers.apply(model, UniformL2(3))
    compile_model(small)
    direct = accuracy(small, test)
    small.fit(*train, epochs=8, batch_size=32, verbose=0)
    compile_model(small, 3e-4)
    small.fit(*train, epochs=4, batch_size=32, verbose=0)
    floating, retrained = accuracy(model, test), accuracy(small, test)
    assert direct < floating - 0.01
    assert retrained > floating - 0.01


def test_eight_and_four_bits_keep_the_accuracy_without_training(digits):
    model, _, test = digits
    for bits, loss in ((8, 0.003), (4, 0.02)):
        small = kc.quantizers.apply(model, Uniform(bits))
        assert accuracy(small, test) > accuracy(model, test) - loss


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="conversion needs the TensorFlow backend"
)
def test_file_shrinks_with_the_bits(digits):
    model, _, (x, _) = digits
    dense = kc.export.to_tflite(model)
    for quantizer, smaller in ((Uniform(4), 0.75 * 8), (Ternary(), 0.75 * 16)):
        small = kc.quantizers.apply(model, quantizer, layers="dense*")
        lite = kc.export.to_tflite(small, calibration=x[:50])
        saved = dense.nbytes - lite.nbytes
        kernels = 4 * (64 * 64)
        # What the kernels themselves take; the rest of the file is the same.
        assert saved > 0 and lite.layers[0].nbytes <= kernels / smaller


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"quantizer": None}, "`quantizer` must be a quantizer or its name"),
        ({"quantizer": "unifrm"}, "Did you mean 'uniform'"),
        ({"quantizer": "uniform", "layers": "stem_bn"}, "chooses 'stem_bn' .BatchNorm"),
        ({"quantizer": "uniform", "layers": ["stem", "head"]}, "No layer matches 'head'"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        kc.quantizers.apply(mixed_model(), **arguments)


def test_what_has_nothing_to_quantise_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
    with pytest.raises(ValueError, match="has no layer that has a Quant form: Dense, Conv2D"):
        kc.quantizers.apply(model, "uniform")
    with pytest.raises(ValueError, match="takes a keras.Model; got Dense"):
        kc.quantizers.apply(keras.layers.Dense(2), "uniform")
