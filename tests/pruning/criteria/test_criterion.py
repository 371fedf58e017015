"""What all criteria share: which layers, data, normalisation, activations and gradients."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_compress as kc
from keras_compress.call_graph import CallGraph
from keras_compress.pruning.criteria import ActivationCriterion, L1Filter
from keras_compress.pruning.criteria.observer import Observer, sample_loss
from keras_compress.pruning.surgery import ChannelGraph


class MeanActivation(ActivationCriterion):
    def update(self, state, maps, gradients=None, targets=None):
        state = np.zeros(maps.shape[-1] + 1) if state is None else state
        state[:-1] += maps.mean(1).sum(0)
        state[-1] += len(maps)
        return state

    def result(self, state):
        return state[:-1] / state[-1]


class MeanGradient(MeanActivation):
    needs = "labels"
    with_gradients = True

    def update(self, state, maps, gradients=None, targets=None):
        return super().update(state, gradients)


def _model():
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(5, activation="tanh", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


X = np.random.default_rng(0).normal(size=(10, 6, 6, 2)).astype("float32")
Y = np.arange(10) % 3


def test_l1_filter_equals_numpy():
    model = _model()
    kernel = model.get_layer("conv").get_weights()[0]
    scores = L1Filter()(model)
    np.testing.assert_allclose(scores["conv"], np.abs(kernel).sum((0, 1, 2)), rtol=1e-6)
    scores = L1Filter(order=2)(model)
    np.testing.assert_allclose(scores["conv"], np.sqrt((kernel**2).sum((0, 1, 2))), rtol=1e-6)
    assert list(scores) == ["conv", "hidden", "logits"]


@pytest.mark.parametrize(
    "normalize, size", [("l2", np.linalg.norm), ("max", np.max), ("mean", np.mean)]
)
def test_normalization_is_by_layer(normalize, size):
    scores = L1Filter(normalize=normalize)(_model())
    for values in scores.values():
        assert size(values) == pytest.approx(1, rel=1e-5)


def test_feature_maps_are_taken_after_norm_and_activation():
    model = _model()
    expected = ops.convert_to_numpy(keras.Model(model.input, model.get_layer("relu").output)(X))
    scores = MeanActivation()(model, data=X, batch_size=3)
    np.testing.assert_allclose(scores["conv"], expected.mean((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    "data",
    [X, [X], (X, Y), [(X[:4], Y[:4]), (X[4:], Y[4:])], [X[:5], X[5:]]],
    ids=["array", "list", "pair", "batches", "unlabelled batches"],
)
def test_data_of_every_form(data):
    model = _model()
    expected = MeanActivation()(model, data=X)
    for name, values in MeanActivation()(model, data=data).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-6)


def test_gradients_equal_finite_differences():
    model = _model()
    loss = "sparse_categorical_crossentropy"
    from_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    graph = CallGraph(model)
    call = next(c for c in graph.calls if c.operation.name == "hidden")
    observer = Observer(graph, [call.output])
    (tensor,), (gradient,) = observer.gradients([X], Y, sample_loss(model, from_logits))
    head = model.get_layer("logits")

    def losses(hidden):
        values = keras.losses.sparse_categorical_crossentropy(Y, head(hidden), from_logits=True)
        return ops.convert_to_numpy(values)

    for unit in range(5):
        step = np.zeros(5, "float32")
        step[unit] = 1e-2
        slope = (losses(tensor + step) - losses(tensor - step)) / 2e-2
        np.testing.assert_allclose(gradient[:, unit], slope, atol=1e-3)
    with pytest.raises(ValueError, match="not compiled with one loss"):
        MeanGradient()(model, data=(X, Y))
    assert MeanGradient()(model, data=(X, Y), loss=loss)["conv"].shape == (4,)


def test_nothing_is_added_to_the_model():
    model = _model()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    MeanActivation()(model, data=X)
    MeanGradient()(model, data=(X, Y), loss="sparse_categorical_crossentropy")
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]


def test_layers_inside_of_nested_models_are_seen():
    inner = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(4, 3, name="conv")], name="in")
    x = inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inner(x))))
    scores = MeanActivation()(model, data=X)
    np.testing.assert_allclose(
        scores["in/conv"], ops.convert_to_numpy(inner(X)).mean((0, 1, 2)), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    "data, message",
    [
        (None, "this needs data"),
        (X[:0], "no samples"),
        (X[..., :1], r"must have the shape \(samples, 6, 6, 2\); got \(10, 6, 6, 1\)"),
        ({"other": X}, "no samples for the inputs"),
        (np.full_like(X, np.nan), "NaN or infinite"),
        ((X, Y[:3]), "same number of rows"),
        (iter([]), "no batch"),
        (3, "must be arrays"),
    ],
    ids=["none", "empty", "shape", "inputs", "nan", "rows", "exhausted", "number"],
)
def test_bad_data(data, message):
    with pytest.raises(ValueError, match=f"MeanActivation: .*{message}"):
        MeanActivation()(_model(), data=data)


def test_labels_that_are_missing():
    with pytest.raises(ValueError, match=r"MeanGradient: .*\(x, y\)"):
        MeanGradient()(_model(), data=X, loss="mse")


def test_weights_that_are_not_finite():
    model = _model()
    layer = model.get_layer("conv")
    layer.kernel.assign(np.full(layer.kernel.shape, np.nan))
    with pytest.raises(ValueError, match="L1Filter: a score of conv is not finite"):
        L1Filter()(ChannelGraph(model))


def test_names_and_arguments():
    assert isinstance(kc.pruning.criteria.get("l1"), L1Filter)
    assert kc.pruning.criteria.get("l2").order == 2
    with pytest.raises(ValueError, match="`order` must be"):
        L1Filter(order=3)
    with pytest.raises(ValueError, match="`normalize` must be one of"):
        L1Filter(normalize="l1")
