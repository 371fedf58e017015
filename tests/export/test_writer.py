"""The writer on whole models: mixed forms, branches, shared and nested layers, names, options."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.export import to_tflite
from keras_compress.export.flatbuffer import Flatbuffer
from keras_compress.layers.stored_kernel import (
    CodebookKernel,
    GridKernel,
    HashedKernel,
    SparseKernel,
)
from tests.export.stored_models import assert_clean, assert_runs_like, constants, conv, dense

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


def inputs(*shape):
    return RNG.normal(size=shape).astype("float32")


def grid(limit, *shape):
    return GridKernel(RNG.integers(-limit, limit + 1, size=shape), 0.05)


def mixed_model():
    """int2, int4, int8, float, sparse, hashed and decoded kernels, branches and two outputs."""
    x = keras.Input((10, 9, 8), name="image")
    y = conv(grid(1, 3, 3, 8, 16), padding="same", activation="relu", name="int8_conv")(x)
    y = keras.layers.BatchNormalization(name="norm")(y)
    left = conv(grid(1, 1, 1, 16, 16), name="int2_pointwise")(y)
    right = keras.layers.Conv2D(16, 3, padding="same", name="float_conv")(y)
    y = keras.layers.Add(name="join")([left, right])
    y = keras.layers.GlobalAveragePooling2D(name="pool")(y)
    y = dense(grid(7, 16, 64), activation="relu", name="int4")(y)
    sparse = inputs(64, 64) * (RNG.random((64, 64)) < 0.2)
    y = dense(SparseKernel(sparse), activation="tanh", name="sparse")(y)
    side = dense(HashedKernel(0.2 * inputs(40), 5, (64, 64)), name="hashed")(y)
    codes = RNG.integers(0, 16, size=(64, 128))
    y = dense(CodebookKernel(codes, 0.2 * inputs(16)), activation="relu", name="codes")(y)
    outputs = {"main": keras.layers.Dense(5, name="float")(y), "side": side}
    return keras.Model(x, outputs, name="mixed")


@pytest.mark.parametrize("quantize,tolerance", [(None, 0.05), ("dynamic", 0.1), ("float16", 0.05)])
@pytest.mark.parametrize("batch_size", [1, None])
def test_mixed_files(quantize, tolerance, batch_size):
    keras.utils.set_random_seed(0)
    model = mixed_model()
    lite = to_tflite(model, quantize=quantize, batch_size=batch_size)
    assert_clean(lite)
    forms = {layer.layer: layer.form for layer in lite.layers}
    assert forms == {
        "int8_conv": "int8",
        "int2_pointwise": "int4",
        "int4": "int4",
        "sparse": forms["sparse"],
        "hashed": "40 int8 values, hashed once",
        "codes": "4-bit codes, decoded once",
    }
    assert forms["sparse"].startswith("float32 sparse, ")
    assert lite.input_names == ["image"] and set(lite.output_names) == {"main", "side"}
    x = inputs(3, 10, 9, 8)
    expected, actual = model(x), lite.predict(x)
    for name, value in expected.items():
        allowed = tolerance * float(np.abs(value).max())
        np.testing.assert_allclose(actual[name], value, atol=allowed, err_msg=name)
    plain = to_tflite(model, quantize=quantize, batch_size=batch_size, storage="dense")
    assert lite.nbytes < plain.nbytes


def test_int8_stores_dense_kernels():
    keras.utils.set_random_seed(0)
    model = mixed_model()
    lite = to_tflite(model, quantize="int8", calibration=inputs(20, 10, 9, 8))
    assert_clean(lite)
    assert lite.layers == [] and lite.max_error < 0.2
    assert {"QUANTIZE", "CONV_2D", "DEQUANTIZE"} <= set(lite.ops)


def test_a_layer_called_twice_has_one_set_of_constants():
    layer = dense(grid(1, 128, 128), activation="relu", name="twice")
    x = keras.Input((128,))
    model = keras.Model(x, layer(layer(x)))
    lite = to_tflite(model)
    assert_clean(lite)
    assert len(lite.layers) == 1 and lite.ops == ["FULLY_CONNECTED"] * 2
    assert lite.nbytes < 1.6 * 128 * 128 / 4 + 3 * 12 * 128
    assert_runs_like(model, lite, inputs(1, 128), 0.06)


def test_layers_of_one_name_in_two_nested_models():
    def inner(name, limit):
        return keras.Sequential(
            [keras.Input((64,)), dense(grid(limit, 64, 64), name="fc")], name=name
        )

    x = keras.Input((64,))
    joined = keras.layers.Concatenate()([inner("a", 1)(x), inner("b", 7)(x)])
    model = keras.Model(x, joined)
    lite = to_tflite(model)
    assert_clean(lite)
    assert [layer.form for layer in lite.layers] == ["int2", "int4"]
    assert len({layer.layer for layer in lite.layers}) == 2
    assert_runs_like(model, lite, inputs(1, 64), 0.02)
    ints = [c[0].T for kind in ("INT2", "INT4") for c in constants(lite, kind) if c[0].ndim == 2]
    stored = [model.get_layer(name).layers[0].stored_kernel.ints for name in "ab"]
    for found, expected in zip(ints, stored, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_hashed_layers_of_one_name_keep_variables_apart():
    def inner(name, seed):
        kernel = HashedKernel(inputs(50), seed, (48, 40))
        return keras.Sequential([keras.Input((48,)), dense(kernel, name="fc")], name=name)

    x = keras.Input((48,))
    model = keras.Model(x, keras.layers.Add()([inner("a", 1)(x), inner("b", 2)(x)]))
    lite = to_tflite(model)
    assert_clean(lite)
    assert_runs_like(model, lite, inputs(1, 48), 0.03)


def test_several_inputs_keep_their_names():
    left, right = keras.Input((32,), name="left"), keras.Input((48,), name="right")
    y = keras.layers.Concatenate()([dense(grid(7, 48, 24))(right), dense(grid(1, 32, 64))(left)])
    model = keras.Model({"left": left, "right": right}, {"sum": y, "raw": left})
    data = {"left": inputs(5, 32), "right": inputs(5, 48)}
    lite = to_tflite(model, calibration=data)
    assert_clean(lite)
    assert set(lite.input_names) == set(data) and set(lite.output_names) == {"sum", "raw"}
    actual, expected = lite.predict(data), model(data)
    np.testing.assert_array_equal(actual["raw"], data["left"])
    np.testing.assert_allclose(
        actual["sum"], expected["sum"], atol=0.02 * np.abs(expected["sum"]).max()
    )


def test_an_output_that_is_also_read_inside_keeps_its_bias_apart():
    # The product is nobody else's, but the sum before the activation is an output of its own.
    layer = dense(grid(1, 64, 64))
    x = keras.Input((64,))
    y = layer(x)
    model = keras.Model(x, [y, keras.layers.ReLU(name="relu")(y)])
    lite = to_tflite(model)
    assert_clean(lite)
    data = inputs(1, 64)
    linear, relu = (np.asarray(v) for v in model(data))
    actual = lite.predict(data)
    for name, value in zip((layer.name, "relu"), (linear, relu), strict=True):
        np.testing.assert_allclose(actual[name], value, atol=0.02 * np.abs(linear).max())


def test_constants_that_are_no_bias_are_not_absorbed_wrongly():
    # A scalar, and one entry for each position: added after the product, whatever they are.
    x = keras.Input((6, 32))
    y = dense(grid(1, 32, 64), use_bias=False)(x)
    table = inputs(6, 64)
    model = keras.Model(x, keras.ops.relu(y + 3.0 + table))
    lite = to_tflite(model)
    assert_clean(lite)
    assert_runs_like(model, lite, inputs(1, 6, 32), 0.02)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_half_precision_models_are_stored_like_full_ones(policy):
    keras.utils.set_random_seed(0)
    x = keras.Input((64,))
    y = kc.layers.BinaryDense(64, input_quantizer=None, scale="mean_abs", dtype=policy)(x)
    y = keras.layers.Dense(32, activation="relu", dtype=policy)(y)
    model = keras.Model(x, keras.layers.Dense(3, dtype="float32")(y))
    lite = to_tflite(model)
    assert_clean(lite)
    assert lite.layers[0].form == "int2" and lite.max_error < 0.05


def test_compact_stores_stock_layers_by_their_values():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 16)),
            keras.layers.Conv2D(32, 3, activation="relu", name="binary_conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu", name="book"),
            keras.layers.Dense(40, name="grid"),
            keras.layers.Dense(12, name="small"),
        ]
    )
    for name, values in (
        ("binary_conv", np.array([-0.1, 0.1])),
        ("book", 0.1 * inputs(9)),
        ("grid", np.arange(-7, 8) * 0.02),
    ):
        kernel = model.get_layer(name).kernel
        kernel.assign(RNG.choice(values, size=kernel.shape))
    lite = to_tflite(model, storage="compact")
    assert_clean(lite)
    forms = {layer.layer: layer.form for layer in lite.layers}
    assert forms == {"binary_conv": "int8", "book": "4-bit codes, decoded once", "grid": "int4"}
    assert_runs_like(model, lite, inputs(1, 6, 6, 16), 0.05)
    assert to_tflite(model).layers == []


@keras.saving.register_keras_serializable(package="tests")
class SpecialFunction(keras.layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.math.digamma(x)


def test_an_operation_without_builtin_is_named_with_stored_layers_around(tmp_path):
    path = tmp_path / "m.tflite"
    model = keras.Sequential(
        [keras.Input((64,)), dense(grid(1, 64, 32), name="fine"), SpecialFunction(name="special")]
    )
    with pytest.raises(ValueError, match=r"layer 'special'.*Digamma.*builtin") as caught:
        to_tflite(model, path)
    assert "fine" not in str(caught.value) and not path.exists()


def test_signature_and_metadata_survive():
    model = mixed_model()
    stored = Flatbuffer(to_tflite(model).content).model
    plain = Flatbuffer(to_tflite(model, storage="dense").content).model
    assert {m.name for m in stored.metadata} == {m.name for m in plain.metadata}
    for side in ("inputs", "outputs"):
        names = [[e.name for e in getattr(m.signatureDefs[0], side)] for m in (stored, plain)]
        assert names[0] == names[1]
    graph = stored.subgraphs[0]
    tensors = [graph.tensors[e.tensorIndex].name for e in stored.signatureDefs[0].inputs]
    plain_graph = plain.subgraphs[0]
    assert tensors == [
        plain_graph.tensors[e.tensorIndex].name for e in plain.signatureDefs[0].inputs
    ]


def test_two_exports_of_one_model_are_equal():
    model = mixed_model()
    assert to_tflite(model).content == to_tflite(model).content


def test_report_counts_the_bytes_of_the_kernels():
    kernel = grid(1, 256, 64)
    model = keras.Sequential([keras.Input((256,)), dense(kernel, name="fc")])
    (layer,) = to_tflite(model).layers
    assert (layer.layer, layer.form, layer.kernel) == ("fc", "int2", "FULLY_CONNECTED int2")
    assert (layer.dense_bytes, layer.nbytes) == (4 * 256 * 64, 256 * 64 // 4)


def test_loops_of_recurrent_layers_keep_their_subgraphs():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 20)),
            dense(grid(1, 20, 64), activation="relu"),
            keras.layers.GRU(32),
            dense(HashedKernel(inputs(50), 1, (32, 64))),
        ]
    )
    lite = to_tflite(model)
    assert_clean(lite)
    names = [graph.graph.name for graph in Flatbuffer(lite.content).subgraphs]
    assert len(names) == 4 and names[-1] == b"keras_compress_init"
    assert_runs_like(model, lite, inputs(1, 6, 20), 0.05)
