"""LazyDense: the columns asked for, and what it keeps of the protocol of compressed layers."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.layers import LazyDense
from tests.layers import test_protocol as protocol
from tests.layers.protocol_cases import Case

RNG = np.random.default_rng(0)
CASE = Case("LazyDense", LazyDense, {"units": 12, "activation": "tanh"}, (5, 16), exact={})

#: All but those that ask for a form smaller than the dense kernel.
PROTOCOL = [
    protocol.test_forward_equals_expand,
    protocol.test_compute_output_shape_equals_the_shape_of_the_output,
    protocol.test_config_round_trip,
    protocol.test_gradients_reach_every_trainable_weight,
    protocol.test_mixed_precision,
    protocol.test_kernel_initializer_sets_the_spread_of_the_dense_kernel,
    protocol.test_from_layer_fits_better_than_nothing_and_carries_the_rest,
    protocol.test_from_layer_is_exact_where_the_form_can_hold_any_kernel,
    protocol.test_from_layer_refuses_other_and_unbuilt_layers,
    protocol.test_unbuilt_layer_has_no_storage_and_says_so,
    protocol.test_layer_works_under_jit_compile,
]


def dense(inputs=(16,), units=12, activation="relu"):
    """A stock layer with a random bias."""
    layer = keras.layers.Dense(units, activation=activation, name="fc")
    layer.build((None, *inputs))
    layer.bias.assign(RNG.normal(size=units))
    return layer


def normal(*shape):
    return RNG.normal(size=shape).astype("float32")


@pytest.mark.parametrize("check", PROTOCOL, ids=lambda check: check.__name__)
def test_protocol(check):
    keras.utils.set_random_seed(7)
    check(CASE)


@pytest.mark.parametrize("shape", [(3, 16), (3, 4, 16)])
def test_vanhoucke_lazy_output_equals_the_columns_of_the_full_output(shape):
    full = dense()
    x, wanted = normal(*shape), np.array([7, 0, 7, 11])
    outputs = LazyDense.from_layer(full)(x, wanted)
    np.testing.assert_allclose(outputs, ops.convert_to_numpy(full(x))[..., wanted], atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 16), (3, 4, 16)])
def test_vanhoucke_each_row_may_ask_for_its_own_columns(shape):
    full, x = dense(), normal(*shape)
    wanted = RNG.integers(0, 12, (*shape[:-1], 5))
    expected = np.take_along_axis(ops.convert_to_numpy(full(x)), wanted, axis=-1)
    np.testing.assert_allclose(LazyDense.from_layer(full)(x, wanted), expected, atol=1e-5)


def test_kernel_initializer_has_the_fans_of_the_dense_kernel():
    """He initialization looks at the inputs only: transposed fans would show."""
    initializer = keras.initializers.HeNormal(seed=1)
    lazy, stock = (
        cls(12, kernel_initializer=keras.initializers.get(initializer))
        for cls in (LazyDense, keras.layers.Dense)
    )
    for layer in (lazy, stock):
        layer.build((None, 400))
    np.testing.assert_array_equal(lazy.reconstruct_kernel(), stock.kernel)


def functional(layer, count=4):
    """A model of the layer whose rows ask for their own columns."""
    x, wanted = keras.Input((16,), name="x"), keras.Input((count,), dtype="int32", name="wanted")
    return keras.Model({"x": x, "wanted": wanted}, layer(x, wanted))


def test_only_wanted_rows_get_a_gradient():
    layer = LazyDense(12)
    model = functional(layer)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    before = ops.convert_to_numpy(layer.rows).copy()
    columns = np.array([[1, 3, 8, 9]] * 6)
    model.fit({"x": normal(6, 16), "wanted": columns}, normal(6, 4), verbose=0)
    moved = np.abs(ops.convert_to_numpy(layer.rows) - before).max(axis=1) > 0
    assert np.flatnonzero(moved).tolist() == [1, 3, 8, 9]


def test_keras_file_round_trip(tmp_path):
    model = functional(LazyDense(12, activation="relu"))
    inputs = {"x": normal(3, 16), "wanted": RNG.integers(0, 12, (3, 4))}
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_array_equal(again.predict(inputs, verbose=0), expected)


def test_price_is_that_of_the_columns_asked_for():
    layer = LazyDense.from_layer(dense())
    assert layer.macs() == 12 * 16
    assert layer.macs((None, 5, 16), wanted=3) == 5 * 3 * 16


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="conversion needs the TensorFlow backend"
)
def test_vanhoucke_file_gathers_rows_and_multiplies_those():
    from keras_compress.export import to_tflite

    full, x = dense(), normal(3, 16)
    wanted = RNG.integers(0, 12, (3, 4)).astype("int32")
    lite = to_tflite(functional(LazyDense.from_layer(full)))
    assert "GATHER" in lite.ops and lite.ops.count("FULLY_CONNECTED") == 1
    expected = np.take_along_axis(ops.convert_to_numpy(full(x)), wanted, axis=-1)
    np.testing.assert_allclose(lite.predict({"x": x, "wanted": wanted}), expected, atol=1e-5)


@pytest.mark.parametrize(
    "wanted,message",
    [
        (np.array([0.0, 1.0], "float32"), "`wanted` must be integers.*got dtype float32"),
        (np.array([True, False]), "From a mask of outputs"),
        (np.zeros((3, 2, 2), "int32"), r"got wanted of shape \(3, 2, 2\) for inputs of shape"),
        (np.int32(3), r"must have shape \(count,\)"),
    ],
)
def test_bad_columns_say_what_to_do(wanted, message):
    with pytest.raises(ValueError, match=message):
        LazyDense(12)(normal(3, 16), ops.convert_to_tensor(wanted))
