"""What goes in and out: names, structures, open axes, sequences, preprocessing layers."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.export import to_tflite

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

L = keras.layers
RNG = np.random.default_rng(0)
SEQUENCES = RNG.normal(size=(3, 5, 4)).astype("float32")
TOKENS = RNG.integers(0, 9, (3, 5)).astype("int32")
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype("float32")


def sequential(shape, *layers, dtype="float32", name="x"):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape, dtype=dtype, name=name), *layers])


def attention(shape, **call):
    keras.utils.set_random_seed(0)
    x = keras.Input(shape, name="x")
    return keras.Model(x, L.MultiHeadAttention(2, 4)(x, x, **call))


def assert_same(model, lite, x):
    expected, got = model(x, training=False), lite.predict(x)
    if not isinstance(expected, dict):
        expected, got = {"": expected}, {"": got}
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-5)


def several(order):
    """Inputs and outputs whose names sort otherwise than they are given."""
    keras.utils.set_random_seed(0)
    b, a = keras.Input((6,), name="b"), keras.Input((4,), name="a")
    joined = L.Concatenate()([b, a])
    outputs = {"z": L.Dense(3)(joined), "y": L.Dense(2)(a), "same": b}
    return keras.Model({"b": b, "a": a} if order == "dict" else [b, a], outputs)


@pytest.mark.parametrize("batch_size", [1, 2, None])
@pytest.mark.parametrize("order", ["dict", "list"])
def test_several_inputs_and_outputs_keep_names_and_values(order, batch_size):
    model = several(order)
    arrays = {n: RNG.normal(size=(5, k)).astype("float32") for n, k in (("b", 6), ("a", 4))}
    x = arrays if order == "dict" else list(arrays.values())
    lite = to_tflite(model, batch_size=batch_size, calibration=x)
    assert set(lite.input_names) == {"a", "b"}
    assert set(lite.output_names) == {"same", "y", "z"}
    assert lite.max_error < 1e-5
    expected, got = model(x), lite.predict(arrays)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


def test_signature_lists_shapes_and_types():
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    model = keras.Model(tokens, {"scores": L.Flatten()(L.Embedding(10, 4)(tokens))})
    assert to_tflite(model, batch_size=None).signature("input") == [
        {"name": "tokens", "shape": [None, 5], "dtype": "int32"}
    ]
    assert to_tflite(model, batch_size=2).signature("output") == [
        {"name": "scores", "shape": [2, 20], "dtype": "float32"}
    ]


def test_inputs_of_different_lengths_are_refused():
    lite = to_tflite(several("dict"))
    with pytest.raises(ValueError, match="differ in their numbers of samples"):
        lite.predict({"a": np.zeros((2, 4)), "b": np.zeros((3, 6))})


RECURRENT = {
    "lstm": lambda **k: L.LSTM(3, **k),
    "gru": lambda **k: L.GRU(3, **k),
    "rnn": lambda **k: L.SimpleRNN(3, **k),
    "bidirectional": lambda **k: L.Bidirectional(L.LSTM(3, return_sequences=True, **k)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name):
    model = sequential((5, 4), RECURRENT[name]())
    assert_same(model, to_tflite(model), SEQUENCES)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_with_an_open_batch_say_how(name):
    layer = RECURRENT[name]()
    with pytest.raises(ValueError, match=f"layer '{layer.name}' of .*fixed batch_size.*unroll"):
        to_tflite(sequential((5, 4), layer), batch_size=None)


def test_unrolled_recurrent_layers_leave_the_batch_open():
    model = sequential((5, 4), L.GRU(3, unroll=True))
    assert_same(model, to_tflite(model, batch_size=None), SEQUENCES)


def test_embedding_with_mask_before_a_recurrent_layer():
    model = sequential((5,), L.Embedding(10, 4, mask_zero=True), L.LSTM(3), dtype="int32")
    tokens = np.where(np.arange(5) < [[5], [2], [3]], TOKENS + 1, 0).astype("int32")
    assert_same(model, to_tflite(model), tokens)


@pytest.mark.parametrize("batch_size", [1, None])
@pytest.mark.parametrize("call", [{}, {"use_causal_mask": True}])
def test_attention(call, batch_size):
    model = attention((5, 4), **call)
    assert_same(model, to_tflite(model, batch_size=batch_size), SEQUENCES)


@pytest.mark.parametrize(
    "layers,dtype",
    [
        ([L.LSTM(3)], "float32"),
        ([L.Conv1D(3, 3, padding="same"), L.GlobalAveragePooling1D()], "float32"),
        ([L.Dense(3)], "float32"),
        ([L.Embedding(10, 4), L.GRU(3)], "int32"),
    ],
    ids=["lstm", "conv", "dense", "tokens"],
)
def test_sequences_of_open_length(layers, dtype):
    shape = (None,) if dtype == "int32" else (None, 4)
    model = sequential(shape, *layers, dtype=dtype)
    lite = to_tflite(model)
    assert lite.signature("input")[0]["shape"] == [1, *shape]
    x = TOKENS if dtype == "int32" else SEQUENCES
    for length in (5, 2, 4):
        assert_same(model, lite, x[:, :length])


def test_open_lengths_below_what_the_model_takes():
    stored = kc.layers.BinaryDense(64, input_quantizer=None)
    model = sequential((None, 4), L.Conv1D(64, 3), L.Conv1D(64, 3), stored)
    lite = to_tflite(model)
    # Two windows of three: five is the least, eight the power of two.
    assert lite.open_length == 8 and lite.max_error < 0.1
    assert lite.predict(SEQUENCES).shape == (3, 1, 64)
    assert len(lite.table(runs=2).cells) > 4
    assert lite.benchmark(runs=2).microseconds[0] > 0


def test_attention_over_open_length_and_batch():
    model = attention((None, 4))
    lite = to_tflite(model, batch_size=None)
    for length in (5, 3):
        assert_same(model, lite, SEQUENCES[:, :length])
    with pytest.raises(ValueError, match=r"\(-1, 4\) \(-1: any length\); got \(5, 3\)"):
        lite.predict(SEQUENCES[..., :3])


def test_open_batches_run_many_samples():
    model = sequential((4,), L.Dense(3))
    x = RNG.normal(size=(71, 4)).astype("float32")
    assert_same(model, to_tflite(model, batch_size=None), x)


def normalization():
    layer = L.Normalization()
    layer.adapt(IMAGES)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.Rescaling(1 / 255, offset=-1),
        normalization,
        lambda: L.Resizing(5, 6),
        lambda: L.Resizing(5, 6, interpolation="nearest"),
        lambda: L.CenterCrop(5, 6),
        lambda: L.RandomFlip(),
        lambda: L.Discretization([-1.0, 0.0, 1.0]),
    ],
    ids=["rescaling", "normalization", "bilinear", "nearest", "crop", "random", "discretization"],
)
def test_image_and_number_preprocessing(make):
    model = sequential((8, 8, 3), make())
    assert_same(model, to_tflite(model), IMAGES)


def test_one_hot_categories():
    model = sequential((1,), L.CategoryEncoding(10, output_mode="one_hot"), dtype="int32")
    assert_same(model, to_tflite(model), TOKENS[:, :1])


@pytest.mark.parametrize(
    "make,dtype,remedy",
    [
        (lambda: L.IntegerLookup(vocabulary=[3, 5]), "int64", "before the model"),
        (lambda: L.StringLookup(vocabulary=["a", "b"]), "string", "before the model"),
        (lambda: L.TextVectorization(vocabulary=["a", "b"]), "string", "before the model"),
        (lambda: L.Hashing(7), "int64", "before the model"),
        (lambda: L.CategoryEncoding(10, output_mode="multi_hot"), "int32", "one_hot"),
    ],
    ids=["integers", "strings", "text", "hashing", "multi_hot"],
)
def test_preprocessing_by_tables_and_strings_names_the_layer_and_the_remedy(make, dtype, remedy):
    layer = make()
    model = sequential((1,), layer, dtype=dtype)
    with pytest.raises(ValueError, match=f"layer '{layer.name}' of .*no builtin.*{remedy}"):
        to_tflite(model)


def test_bicubic_resizing_says_what_converts():
    model = sequential((8, 8, 3), L.Resizing(5, 6, interpolation="bicubic", name="cubic"))
    with pytest.raises(ValueError, match="layer 'cubic' of .*ResizeBicubic.*bilinear"):
        to_tflite(model)
