"""Every compressed layer keeps the protocol: these tests run over `protocol_cases.CASES`."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from tests.layers.protocol_cases import CASES

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="conversion needs the TensorFlow backend"
)


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request):
    keras.utils.set_random_seed(7)
    return request.param


def make_inputs(case, rows=3, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, *case.input_shape)).astype("float32")
    return np.where(values >= 0, 1.0, -1.0).astype("float32") if case.signs else values


def make_layer(case, **changes):
    layer = case.cls(**{**case.arguments, **changes})
    layer(make_inputs(case))
    return layer


def make_source(case):
    """A stock layer with the arguments that the compressed layer shares with it."""
    names = (*case.cls.source_arguments, "use_bias", "activation")
    source = case.cls.source(**{k: v for k, v in case.arguments.items() if k in names})
    source.build((None, math.prod(case.input_shape)) if case.flat else (None, *case.input_shape))
    rng = np.random.default_rng(1)
    for name in case.cls.source_kernels:
        variable = getattr(weights_of(source), name)
        variable.assign(0.3 * rng.normal(size=variable.shape))
    if source.use_bias:
        bias = weights_of(source).bias
        bias.assign(rng.normal(size=bias.shape))
    return source


def weights_of(source):
    """What has a stock layer's kernels and bias as attributes: the cell of a recurrent one."""
    return getattr(source, "cell", source)


def run(layer, inputs):
    return ops.convert_to_numpy(layer(inputs))


def run_stock(case, layer, inputs):
    return run(layer, inputs.reshape(len(inputs), -1) if case.flat else inputs)


def assert_close(actual, expected, tolerance):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, atol=tolerance * scale, rtol=0)


def test_forward_equals_expand(case):
    layer, inputs = make_layer(case), make_inputs(case)
    expanded = layer.expand()
    assert type(expanded) is case.cls.source
    assert expanded.name == layer.name
    assert_close(run(layer, inputs), run_stock(case, expanded, inputs), case.tolerance)


def test_compute_output_shape_equals_the_shape_of_the_output(case):
    layer, inputs = make_layer(case), make_inputs(case)
    assert tuple(layer.compute_output_shape(inputs.shape)) == tuple(layer(inputs).shape)


def test_config_round_trip(case):
    layer = make_layer(case)
    config = layer.get_config()
    again = case.cls.from_config(config)
    assert again.get_config() == config


def test_keras_file_round_trip(case, tmp_path):
    inputs = make_inputs(case)
    model = keras.Sequential([keras.Input(case.input_shape), case.cls(**case.arguments)])
    expected = run(model, inputs)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(again, inputs), expected)


def test_gradients_reach_every_trainable_weight(case):
    model = keras.Sequential([keras.Input(case.input_shape), case.cls(**case.arguments)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    before = [ops.convert_to_numpy(w).copy() for w in model.trainable_weights]
    assert before
    inputs = make_inputs(case, rows=8)
    targets = np.random.default_rng(2).normal(size=model(inputs).shape).astype("float32")
    model.fit(inputs, targets, batch_size=8, epochs=1, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.abs(ops.convert_to_numpy(weight) - old).max() > 0, weight.path


def test_mixed_precision(case):
    full = make_layer(case)
    mixed = make_layer(case, dtype="mixed_bfloat16")
    mixed.set_weights(full.get_weights())
    inputs = make_inputs(case)
    outputs = mixed(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert all(w.dtype == "float32" for w in mixed.trainable_weights)
    outputs = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    assert_close(outputs, run(full, inputs), 0.1)


def test_kernel_initializer_sets_the_spread_of_the_dense_kernel(case):
    initializer = keras.initializers.RandomNormal(stddev=0.05)
    layer = make_layer(case, **{case.initializer: initializer})
    if case.signs or "scale" in case.arguments:
        pytest.skip("binary kernels have the spread of their levels")
    spread = float(np.std(layer.reconstruct_kernels()[0]))
    # One draw of few free weights: the spread itself has a spread.
    assert 0.015 < spread < 0.15


def test_from_layer_fits_better_than_nothing_and_carries_the_rest(case):
    source, inputs = make_source(case), make_inputs(case)
    layer = case.cls.from_layer(source, **case.fit)
    assert layer.built and layer.name == source.name
    assert layer.activation == source.activation
    assert layer.dtype_policy == source.dtype_policy
    if source.use_bias:
        np.testing.assert_array_equal(layer.bias, weights_of(source).bias)
    for name, kernel in zip(case.cls.source_kernels, layer.reconstruct_kernels(), strict=True):
        trained = ops.convert_to_numpy(getattr(weights_of(source), name))
        assert np.linalg.norm(kernel - trained) < np.linalg.norm(trained)
    assert_close(run(layer, inputs), run_stock(case, layer.expand(), inputs), case.tolerance)


def test_from_layer_is_exact_where_the_form_can_hold_any_kernel(case):
    if case.exact is None:
        pytest.skip("no setting of this form holds every kernel")
    source, inputs = make_source(case), make_inputs(case)
    layer = case.cls.from_layer(source, **case.exact)
    for name, kernel in zip(case.cls.source_kernels, layer.reconstruct_kernels(), strict=True):
        np.testing.assert_allclose(kernel, getattr(weights_of(source), name), atol=1e-5)
    assert_close(run(layer, inputs), run_stock(case, source, inputs), 1e-5)


def test_from_layer_refuses_other_and_unbuilt_layers(case):
    with pytest.raises(ValueError, match=case.cls.source.__name__):
        case.cls.from_layer(keras.layers.Flatten(), **case.fit)
    names = case.cls.source_arguments
    unbuilt = case.cls.source(**{k: v for k, v in case.arguments.items() if k in names})
    with pytest.raises(ValueError, match="built"):
        case.cls.from_layer(unbuilt, **case.fit)


def test_unbuilt_layer_has_no_storage_and_says_so(case):
    with pytest.raises(ValueError, match="not built"):
        case.cls(**case.arguments).storage_bits()


def test_storage_is_smaller_than_the_dense_kernel_and_macs_are_counted(case):
    layer = make_layer(case)
    dense = layer.expand()
    bits = 32 * dense.count_params()
    assert 0 < layer.storage_bits() < bits if case.smaller else layer.storage_bits() == bits
    assert layer.macs((None, *case.input_shape)) > 0


def test_layer_works_under_jit_compile(case):
    model = keras.Sequential([keras.Input(case.input_shape), case.cls(**case.arguments)])
    inputs = make_inputs(case)
    expected = run(model, inputs)
    model.compile(loss="mse", jit_compile=True)
    assert_close(model.predict(inputs, verbose=0), expected, 1e-4)


@on_tensorflow
@pytest.mark.parametrize("storage, tolerance", [("dense", 1e-4), ("auto", 0.02)])
def test_tflite_gives_the_same_outputs_with_builtin_ops(case, storage, tolerance, tmp_path):
    from keras_compress.export import to_tflite

    model = keras.Sequential([keras.Input(case.input_shape), case.cls(**case.arguments)])
    inputs = make_inputs(case)
    lite = to_tflite(model, tmp_path / "model.tflite", storage=storage)
    # Only a kernel that quantises its inputs to 8 bits may differ by more than rounding.
    if all(layer.exact for layer in lite.layers):
        tolerance = 1e-4
    assert_close(lite.predict(inputs), run(model, inputs), tolerance)
    assert not any(op.startswith(("FLEX", "CUSTOM")) for op in lite.ops)
