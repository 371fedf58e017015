"""Models that tensorflow-model-optimization pruned, clustered or annotated."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.interop import from_tf_keras
from keras_compress.pruning import schedules
from tests.interop import legacy

pytestmark = [legacy.needs_tf_keras, legacy.needs_tfmot]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6, 4)).astype("float32")
Y = RNG.normal(size=(32, 3)).astype("float32")


def network():
    layers = legacy.tf_keras().layers
    model = legacy.tf_keras().Sequential(
        [
            layers.Input((6, 4)),
            layers.Conv1D(8, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(),
            layers.Dense(8, activation="relu", name="fc"),
            layers.Dense(3, name="logits"),
        ]
    )
    return legacy.fill(model)


def pruned():
    sparsity = legacy.tfmot().sparsity.keras
    model = sparsity.prune_low_magnitude(
        network(), sparsity.PolynomialDecay(0.2, 0.75, 0, 4, frequency=1)
    )
    model.compile("adam", "mse")
    callbacks = [sparsity.UpdatePruningStep()]
    model.fit(X, Y, batch_size=8, epochs=2, callbacks=callbacks, verbose=0)
    return model


def clustered(model, clusters=4):
    clustering = legacy.tfmot().clustering.keras
    return clustering.cluster_weights(
        model,
        number_of_clusters=clusters,
        cluster_centroids_init=clustering.CentroidInitialization.LINEAR,
    )


def distinct(weight):
    return len(np.unique(keras.ops.convert_to_numpy(weight)))


def kernels(model):
    return [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]


def test_pruned_model_equals_the_stripped_one_and_keeps_its_zeros():
    model = pruned()
    new = from_tf_keras(model)
    stripped = legacy.tfmot().sparsity.keras.strip_pruning(model)
    legacy.assert_same_outputs(stripped, new, X)
    legacy.assert_same_outputs(stripped, from_tf_keras(stripped), X)
    names = ["conv", "norm", "fc", "logits"]
    assert [layer.name for layer in new.layers if layer.weights] == names
    for kernel in kernels(new):
        assert np.mean(keras.ops.convert_to_numpy(kernel) == 0) == 0.75


def test_mask_is_applied_to_weights_that_moved_after_it():
    model = pruned()
    wrapper = next(layer for layer in model.layers if layer.name.endswith("_fc"))
    ((weight, mask, _),) = wrapper.pruning_vars
    weight.assign_add(np.ones(weight.shape))
    kernel = keras.ops.convert_to_numpy(from_tf_keras(model).get_layer("fc").kernel)
    np.testing.assert_array_equal(kernel, weight.numpy() * mask.numpy())


def test_clustered_model_equals_wrapped_and_stripped_one():
    model = clustered(network())
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    new = from_tf_keras(model)
    legacy.assert_same_outputs(model, new, X)
    assert [distinct(kernel) for kernel in kernels(new)] == [4, 4, 4]
    stripped = legacy.tfmot().clustering.keras.strip_clustering(model)
    legacy.assert_same_outputs(stripped, from_tf_keras(stripped), X)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda layers: layers.LSTM(4),
        lambda layers: layers.RNN([layers.LSTMCell(3), layers.LSTMCell(4)]),
        lambda layers: layers.Bidirectional(layers.GRU(4)),
        lambda layers: layers.SeparableConv1D(5, 2),
    ],
    ids=["lstm", "stacked", "bidirectional", "separable"],
)
def test_clustered_layers_of_several_kernels(make, trainable):
    tf_keras = legacy.tf_keras()
    layer = make(tf_keras.layers)
    inputs = tf_keras.Input((6, 4))
    layer(inputs)
    layer.trainable = trainable
    model = tf_keras.Model(inputs, clustered(layer, 3)(inputs))
    legacy.assert_same_outputs(model, from_tf_keras(model), X)


def test_clustered_attention_before_and_after_stripping():
    tf_keras = legacy.tf_keras()
    inputs = tf_keras.Input((6, 4))
    outputs = tf_keras.layers.MultiHeadAttention(2, 3)(inputs, inputs)
    model = clustered(legacy.fill(tf_keras.Model(inputs, outputs)), 3)
    new = from_tf_keras(model)
    legacy.assert_same_outputs(model, new, X)
    assert max(distinct(w) for w in new.weights if "kernel" in w.path) == 3
    stripped = legacy.tfmot().clustering.keras.strip_clustering(model)
    legacy.assert_same_outputs(stripped, from_tf_keras(stripped), X)


def test_annotated_model_is_the_plain_one():
    model = network()
    annotated = legacy.tfmot().quantization.keras.quantize_annotate_model(model)
    new = from_tf_keras(annotated)
    legacy.assert_same_outputs(model, new, X)
    assert [layer.name for layer in new.layers if layer.weights] == ["conv", "norm", "fc", "logits"]


def quantized_source():
    tf_keras = legacy.tf_keras()
    layers = tf_keras.layers
    inputs = tf_keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return legacy.fill(tf_keras.Model(inputs, layers.Dense(4, activation="softmax")(x)))


def test_quantization_aware_model_gives_its_float_weights_with_a_warning():
    source = quantized_source()
    aware = legacy.tfmot().quantization.keras.quantize_model(source)
    with pytest.warns(
        UserWarning, match="quantization-aware by tfmot.*kc.quantizers.quantize_aware"
    ):
        new = from_tf_keras(aware)
    images = RNG.normal(size=(4, 8, 8, 3)).astype("float32")
    legacy.assert_same_outputs(source, new, images)
    # The weights that training behind the fake quantisation moved, not those it began with.
    dense = next(layer for layer in aware.layers if layer.name.startswith("quant_dense"))
    dense._weight_vars[0][0].assign_add(np.ones((6, 4)))
    with pytest.warns(UserWarning):
        new = from_tf_keras(aware)
    want = source.layers[-1].get_weights()[0] + 1
    np.testing.assert_allclose(keras.ops.convert_to_numpy(new.layers[-1].kernel), want, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".h5", ".keras", ""])
@pytest.mark.parametrize("make", [pruned, lambda: clustered(network())], ids=["pruned", "clusters"])
def test_saved_tfmot_model_by_its_path(make, suffix, tmp_path):
    model = make()
    path = tmp_path / f"model{suffix}"
    model.save(path)
    legacy.assert_same_outputs(model, from_tf_keras(path), X)


def tfmot_schedules():
    sparsity = legacy.tfmot().sparsity.keras
    return [
        sparsity.ConstantSparsity(0.5, 3, 17, 5),
        sparsity.ConstantSparsity(0.6, 2, -1, 4),
        sparsity.PolynomialDecay(0.1, 0.8, 2, 18, power=3, frequency=4),
        sparsity.PolynomialDecay(0.0, 0.9, 0, 17, power=1, frequency=4),
    ]


@pytest.mark.parametrize("index", range(4))
def test_schedule_object_of_tfmot_is_asked_as_tfmot_asks_it(index):
    theirs = tfmot_schedules()[index]
    ours = schedules.get(theirs)
    for step in range(25):
        due, sparsity = theirs(step)
        got_due, got = ours(step)
        assert got_due == bool(due)
        assert not got_due or got == float(sparsity)
    assert ours.final_sparsity == (0.5, 0.6, 0.8, 0.9)[index]


@pytest.mark.parametrize("index", range(4))
def test_config_of_a_tfmot_schedule_is_the_schedule_of_that_name(index):
    theirs = tfmot_schedules()[index]
    ours = schedules.get(theirs.get_config())
    assert type(ours).__name__ == type(theirs).__name__
    for step in range(25):
        due, sparsity = theirs(step)
        got_due, got = ours(step)
        assert got_due == bool(due) or step == ours.end_step
        assert not got_due or got == pytest.approx(float(sparsity), abs=1e-6)


def test_magnitude_pruning_with_a_tfmot_schedule():
    schedule = legacy.tfmot().sparsity.keras.PolynomialDecay(0.2, 0.75, 0, 4, frequency=1)
    model = from_tf_keras(network())
    model.compile("sgd", "mse")
    pruning = kc.callbacks.MagnitudePruning(schedule)
    model.fit(X, Y, batch_size=8, epochs=2, callbacks=[pruning], verbose=0)
    for kernel in kernels(model)[:2]:
        assert np.mean(keras.ops.convert_to_numpy(kernel) == 0) == 0.75
