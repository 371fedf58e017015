"""Flatbuffer: packing, and files without anything unused."""

import keras
import numpy as np
import pytest

from keras_compress.export import LiteModel, to_tflite
from keras_compress.export.flatbuffer import Flatbuffer, pack
from tests.export.stored_models import assert_clean, run

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (2, 3), (5, 7), (3, 3, 2, 1)])
def test_pack_equals_arithmetic_in_integers_of_any_length(bits, shape):
    low = -(2 ** (bits - 1))
    ints = RNG.integers(low, -low, size=shape)
    # One long number: entry i counts 2^(bits * i), modulo 2^bits.
    number = sum((int(v) % 2**bits) << (bits * i) for i, v in enumerate(ints.ravel()))
    expected = number.to_bytes(-(-ints.size * bits // 8), "little")
    assert pack(ints, bits) == expected


def flatbuffer_of(model):
    return Flatbuffer(to_tflite(model, storage="dense").content)


def test_unused_tensors_buffers_and_codes_go_and_the_rest_still_runs():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="tanh")])
    flatbuffer = flatbuffer_of(model)
    size = len(flatbuffer.to_bytes())
    graph = flatbuffer.main
    # In front of all others, so that every index moves.
    graph.add_constant("unused", np.arange(1000, dtype=np.float32))
    graph.graph.tensors.insert(0, graph.graph.tensors.pop())
    for operator in graph.operators:
        operator.inputs = [i if i < 0 else i + 1 for i in operator.inputs]
        operator.outputs = [i + 1 for i in operator.outputs]
    graph.graph.inputs = [i + 1 for i in graph.graph.inputs]
    graph.graph.outputs = [i + 1 for i in graph.graph.outputs]
    for signature in flatbuffer.model.signatureDefs:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex += 1
    flatbuffer.operator_code("GATHER", 2)
    lite = LiteModel(flatbuffer.to_bytes())
    assert_clean(lite)
    assert lite.nbytes <= size
    x = RNG.normal(size=(1, 4)).astype("float32")
    np.testing.assert_allclose(lite.predict(x), model(x), atol=1e-6)


def test_equal_constants_are_stored_once():
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32), keras.layers.Dense(32)])
    flatbuffer = flatbuffer_of(model)
    graph = flatbuffer.main
    kernel = RNG.normal(size=(32, 32)).astype("float32")
    for operator in graph.operators:
        operator.inputs[1] = graph.add_constant("kernel", kernel)
    lite = LiteModel(flatbuffer.to_bytes())
    assert_clean(lite)
    assert lite.nbytes < 2 * kernel.nbytes
    x = RNG.normal(size=(1, 32)).astype("float32")
    np.testing.assert_allclose(run(lite, x), x @ kernel.T @ kernel.T, rtol=1e-4, atol=1e-4)


def test_metadata_is_kept():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    before = flatbuffer_of(model)
    after = Flatbuffer(before.to_bytes())

    def metadata(flatbuffer):
        entries = flatbuffer.model.metadata
        return {e.name: bytes(flatbuffer.model.buffers[e.buffer].data) for e in entries}

    assert metadata(after) == metadata(flatbuffer_of(model)) != {}
    assert after.model.description == before.model.description
