"""SparseBasisConv2D: unit norms, masks and the lasso on its mixture, and removal of filters."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.layers import FactorizedConv2D, SparseBasisConv2D

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6, 6, 4)).astype("float32")
LASSO = kc.regularizers.SparseGroupLasso(0.02, 0.2)


def numpy(variable):
    return ops.convert_to_numpy(variable)


def sparse_net(**options):
    keras.utils.set_random_seed(0)
    conv = keras.layers.Conv2D(10, 3, padding="same", activation="relu", name="conv")
    conv.build((None, 6, 6, 4))
    layer = SparseBasisConv2D.from_layer(conv, rank=4, **options)
    model = keras.Sequential([keras.Input((6, 6, 4)), layer, keras.layers.Dense(2, name="head")])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model, layer


@pytest.fixture(scope="module")
def trained():
    """A net after a fit with proximal steps, and after a mask on what they left."""
    model, layer = sparse_net(kernel_regularizer=LASSO)
    targets = numpy(model(X)) + 0.1 * RNG.normal(size=(64, 6, 6, 2)).astype("float32")
    steps = kc.callbacks.ProximalGroupLasso(threshold=0)
    model.fit(X, targets, batch_size=16, epochs=6, callbacks=[steps], verbose=0)
    after_lasso = numpy(layer.kernel).copy()
    pruning = kc.callbacks.MagnitudePruning(kc.pruning.OneShot(0.8), layers="conv")
    model.fit(X, targets, batch_size=16, epochs=2, callbacks=[pruning], verbose=0)
    return model, layer, after_lasso


def test_liu_lasso_and_masks_act_on_the_mixture_and_the_bases_keep_unit_norm(trained):
    _, layer, after_lasso = trained
    rows = after_lasso[0, 0]
    # Whole filters, and single entries of others.
    assert (~rows.any(1)).sum() > 1 and ((rows == 0).any(1) & rows.any(1)).any()
    assert np.mean(numpy(layer.kernel) == 0) == pytest.approx(0.8, abs=0.01)
    assert numpy(layer.basis).all() and numpy(layer.basis_filters).all()
    np.testing.assert_allclose(np.linalg.norm(numpy(layer.basis)[0, 0], axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(numpy(layer.basis_filters), axis=(0, 1)), 1, atol=1e-5
    )


def test_masked_model_is_saved_and_stripped(trained, tmp_path):
    model, layer, _ = trained
    model.save(tmp_path / "masked.keras")
    loaded = keras.models.load_model(tmp_path / "masked.keras")
    np.testing.assert_array_equal(numpy(loaded(X)), numpy(model(X)))
    assert isinstance(loaded.get_layer("conv").kernel_constraint, kc.pruning.PruningMask)
    plain = kc.pruning.strip(model).get_layer("conv")
    assert plain.kernel_constraint is None and plain.kernel_regularizer is not None
    np.testing.assert_array_equal(numpy(plain.kernel), numpy(layer.kernel))


@pytest.mark.filterwarnings("ignore:Channels that these layers read")
def test_liu_filters_that_no_output_uses_are_removed_and_the_outputs_stay(trained):
    model, layer, _ = trained
    model = kc.pruning.strip(model)
    used = int(numpy(layer.kernel)[0, 0].any(1).sum())
    before = model.count_params()
    smaller = kc.pruning.remove_zero_groups(model)
    new = smaller.get_layer("conv")
    assert type(new) is FactorizedConv2D and new.form == "depthwise" and new.rank == used
    assert smaller.count_params() < before == model.count_params()
    np.testing.assert_allclose(numpy(smaller(X)), numpy(model(X)), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Channels that these layers read")
def test_rows_below_the_threshold_go_and_layers_that_would_grow_stay():
    model, layer = sparse_net()
    kernel = numpy(layer.kernel).copy()
    kernel[:, :, ::2] *= 1e-3
    layer.kernel.assign(kernel)
    smaller = kc.pruning.remove_zero_groups(model, threshold=0.01)
    assert smaller.get_layer("conv").rank == 8
    assert numpy(layer.kernel).all()
    kernel[:, :, 0] = 0
    layer.kernel.assign(kernel)
    assert layer.without_unused_filters() is layer
    layer.kernel.assign(np.zeros_like(kernel))
    assert layer.without_unused_filters().rank == 1


def test_a_layer_from_scratch_starts_with_bases_of_unit_norm():
    layer = SparseBasisConv2D(8, (3, 2), rank=3)
    layer.build((None, 5, 5, 4))
    np.testing.assert_allclose(np.linalg.norm(numpy(layer.basis)[0, 0], axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(numpy(layer.basis_filters), axis=(0, 1)), 1, atol=1e-5
    )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs the converter")
@pytest.mark.parametrize("form", ["sparse_basis", "depthwise"])
def test_tflite_stores_a_sparse_mixture_without_its_zeros(form, tmp_path):
    conv = keras.layers.Conv2D(32, 3, padding="same", strides=2, activation="relu", name="conv")
    conv.build((None, 9, 9, 16))
    if form == "depthwise":
        layer = FactorizedConv2D.from_layer(conv, form=form, rank=64)
    else:
        layer = SparseBasisConv2D.from_layer(conv, rank=4)
    mixture = layer.factors[-1]
    mixture.assign(numpy(mixture) * (RNG.random(mixture.shape) < 0.1))
    model = keras.Sequential([keras.Input((9, 9, 16)), layer])
    lite = kc.export.to_tflite(model, tmp_path / "model.tflite")
    (stored,) = lite.layers
    assert stored.exact and stored.nbytes < 0.4 * stored.dense_bytes == 0.4 * 4 * 64 * 32
    x = RNG.normal(size=(2, 9, 9, 16)).astype("float32")
    np.testing.assert_allclose(lite.predict(x), numpy(model(x)), atol=1e-4)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"rank": 10}, "largest useful rank is 9"),
        ({"rank": 4, "groups": 2}, "`groups` must be 1"),
        ({"rank": 0.5}, "Use from_layer"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseBasisConv2D(12, 3, **arguments)


def test_factors_of_other_forms_are_refused():
    conv = keras.layers.Conv2D(6, 3)
    conv.build((None, 5, 5, 4))
    factors = kc.decomposition.decompose(numpy(conv.kernel), "sparse_basis", 2)
    with pytest.raises(ValueError, match="got SparseBasisFactors"):
        FactorizedConv2D.from_layer(conv, factors=factors)
