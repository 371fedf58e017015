"""A whole pruned model by sparse kernels gives the outputs of Keras."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_compress as kc

RNG = np.random.default_rng(0)
# Processors on which every kernel, and none, is faster sparse.
SPARSE = kc.sparse.Machine(1.0, 1e12, 1e-12, 1e12, 1e-9)
DENSE = kc.sparse.Machine(1e15, 1.0, 1.0, 1e12)


def branched_model():
    """Residual, strided, pooled in several ways, batch-normalised, with two outputs."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="branch")(x)
    x = layers.Add()([x, y])
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.Conv2D(8, 1, activation="tanh", name="pointwise")(x)
    x = layers.AveragePooling2D(2)(x)
    flat = layers.Dropout(0.5)(layers.Flatten()(x))
    first = layers.Dense(5, activation="softmax", name="first")(flat)
    second = layers.Dense(2, name="second")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, {"first": first, "second": second})
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(RNG.normal(size=6))
            layer.moving_variance.assign(RNG.uniform(0.5, 2, size=6))
    return model


@pytest.fixture(scope="module")
def pruned():
    keras.utils.set_random_seed(0)
    return kc.pruning.prune_weights(branched_model(), "magnitude", 0.6)


@pytest.mark.parametrize("machine, runs", [(SPARSE, "sparse"), (DENSE, "dense")])
def test_compiled_model_predicts_as_keras_does(pruned, machine, runs):
    fast = kc.sparse.compile(pruned, batch_size=4, machine=machine)
    assert {row.name: row.runs for row in fast.layers} == dict.fromkeys(
        ("stem", "branch", "pointwise", "first", "second"), runs
    )
    x = RNG.normal(size=(7, 12, 12, 3)).astype("float32")
    expected = pruned.predict(x, verbose=0)
    outputs = fast.predict(x)
    assert sorted(outputs) == ["first", "second"]
    for name, array in outputs.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5)


def test_report_says_which_layers_stay_dense_and_from_where_sparsity_pays(pruned):
    # Here an axpy of a pointwise layer costs as much as its dense product.
    machine = kc.sparse.Machine(2e9, 1e9, 1e-9, 1e12, 1e-6)
    fast = kc.sparse.compile(pruned, batch_size=4, machine=machine)
    runs = {row.name: row.runs for row in fast.layers}
    assert set(runs.values()) == {"sparse", "dense"}
    for row in fast.layers:
        assert (row.runs == "sparse") == (row.cost.sparsity > row.cost.lower)
    lines = str(fast).splitlines()
    assert " ".join(lines[1].split()) == "layer zeros pays from dense us sparse us runs"
    assert all(line.split()[-1] == runs[line.split()[0]] for line in lines[3:])
    x = RNG.normal(size=(3, 12, 12, 3)).astype("float32")
    np.testing.assert_allclose(
        fast.predict(x)["first"], pruned.predict(x, verbose=0)["first"], atol=1e-5
    )


def test_threads_give_the_same_outputs_in_order(pruned):
    x = RNG.normal(size=(9, 12, 12, 3)).astype("float32")
    one = kc.sparse.compile(pruned, batch_size=2, machine=SPARSE).predict(x)
    two = kc.sparse.compile(pruned, batch_size=2, threads=2, machine=SPARSE).predict(x)
    np.testing.assert_array_equal(one["first"], two["first"])


def test_model_of_the_caller_is_not_changed_and_later_changes_are_not_seen(pruned):
    before = pruned.get_weights()
    fast = kc.sparse.compile(pruned, machine=SPARSE)
    x = RNG.normal(size=(2, 12, 12, 3)).astype("float32")
    expected = fast.predict(x)["first"]
    pruned.set_weights([0 * weight for weight in before])
    np.testing.assert_array_equal(fast.predict(x)["first"], expected)
    pruned.set_weights(before)


def test_nested_shared_and_channels_first_layers_and_sequences():
    keras.utils.set_random_seed(1)
    shared = layers.Dense(4, activation="relu", name="shared")
    inputs = keras.Input((6, 4))
    nested = keras.Sequential([keras.Input((6, 4)), shared, layers.Dense(4, name="inner")])
    x = nested(shared(inputs))
    x = layers.Reshape((4, 3, 2))(x)
    x = layers.Permute((1, 2, 3))(x)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    fast = kc.sparse.compile(model, machine=SPARSE)
    assert [row.name for row in fast.layers] == ["shared", "shared", "inner", "out"]
    data = RNG.normal(size=(5, 6, 4)).astype("float32")
    np.testing.assert_allclose(fast.predict(data), model.predict(data, verbose=0), atol=1e-5)


def test_models_without_a_graph_and_open_sizes_are_refused(pruned):
    with pytest.raises(ValueError, match="compile takes a keras.Model"):
        kc.sparse.compile("model")
    inputs = keras.Input((None, None, 3))
    open_model = keras.Model(inputs, layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ValueError, match="depends on a size that is open"):
        kc.sparse.compile(open_model, machine=SPARSE)
    with pytest.raises(ValueError, match="`threads` must be a positive integer"):
        kc.sparse.compile(pruned, threads=0, machine=SPARSE)
    with pytest.raises(ValueError, match="must have the shape"):
        kc.sparse.compile(pruned, machine=SPARSE).predict(np.ones((2, 5, 5, 3)))
