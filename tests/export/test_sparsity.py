"""Sparse tensors: numpy decodes them, LiteRT computes exactly with them."""

import keras
import numpy as np
import pytest

from keras_compress.export.sparsity import csr, encode
from keras_compress.layers.stored_kernel import SparseKernel
from tests.export.stored_models import assert_runs_like, conv, dense, export

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)

RNG = np.random.default_rng(0)


def sparse(shape, density=0.2, dtype="float32"):
    return (RNG.normal(size=shape) * (RNG.random(shape) < density)).astype(dtype)


def decode(values, segments, indices, shape):
    rows = np.zeros((len(segments) - 1, shape[-1]))
    for row in range(len(rows)):
        for i in range(segments[row], segments[row + 1]):
            rows[row, indices[i]] = values[i]
    return rows.reshape(shape)


@pytest.mark.parametrize("shape", [(1, 3), (7, 5), (3, 2, 4), (4, 3, 3, 6)])
def test_encoding_decodes_to_the_array(shape):
    array = sparse(shape)
    array[0] = 0
    np.testing.assert_array_equal(decode(*encode(array), shape), array)


@pytest.mark.parametrize(
    "columns,index,count,segment",
    [(256, "uint8", 200, "uint8"), (257, "uint16", 400, "uint16"), (70_000, "int32", 9, "uint8")],
)
def test_integers_are_as_narrow_as_the_schema_allows(columns, index, count, segment):
    array = np.zeros((2, columns), "float32")
    array[:, -1] = 1
    array[1, :count] = 1
    _, segments, indices = encode(array)
    assert (indices.dtype, segments.dtype) == (index, segment)


def test_an_empty_array_keeps_one_entry_so_that_it_stays_a_constant():
    values, segments, indices = encode(np.zeros((3, 4), "float32"))
    assert values.tolist() == [0.0] and segments.tolist() == [0, 1, 1, 1] and len(indices) == 1


def test_parameters_describe_dense_axes_and_a_compressed_last_one():
    from ai_edge_litert import schema_py_generated as schema

    _, parameters = csr(schema, sparse((4, 3, 5)))
    formats = [metadata.format for metadata in parameters.dimMetadata]
    assert formats == [schema.DimensionType.DENSE] * 2 + [schema.DimensionType.SPARSE_CSR]
    assert [metadata.denseSize for metadata in parameters.dimMetadata[:2]] == [4, 3]
    assert parameters.traversalOrder == [0, 1, 2]


# Indices of 8 and 16 bits; of 32 beyond 65,536 inputs.
@pytest.mark.parametrize("inputs,density", [(33, 0.3), (300, 0.2), (66_000, 0.01)])
def test_sparse_dense_layers_are_exact(inputs, density):
    kernel = sparse((inputs, 9), density)
    kernel[:, 4] = 0
    model, lite = export(dense(SparseKernel(kernel), activation="relu"), (inputs,), batch_size=2)
    assert lite.layers[0].exact
    assert_runs_like(model, lite, RNG.normal(size=(2, inputs)).astype("float32"), 1e-5)


@pytest.mark.parametrize("batch_size", [1, None])
def test_sparse_convolutions_are_exact(batch_size):
    kernel = sparse((3, 2, 20, 8))
    layer = conv(SparseKernel(kernel), padding="same", strides=2, use_bias=False)
    model, lite = export(layer, (None, None, 20), batch_size=batch_size)
    assert_runs_like(model, lite, RNG.normal(size=(1, 9, 7, 20)).astype("float32"), 1e-5)


def test_kernels_of_zeros_alone_give_the_bias():
    for shape, make, size in (((64, 8), dense, (64,)), ((3, 3, 4, 8), conv, (5, 5, 4))):
        model, lite = export(make(SparseKernel(np.zeros(shape, "float32"))), size)
        assert_runs_like(model, lite, RNG.normal(size=(1, *size)).astype("float32"), 1e-6)


@pytest.mark.parametrize(
    "shape,make,size", [((300, 40), dense, (300,)), ((3, 3, 9, 8), conv, (5, 6, 9))]
)
def test_half_precision_is_stored_and_widened_at_load(shape, make, size):
    kernel = sparse(shape, dtype="float16")
    full = export(make(SparseKernel(kernel.astype("float32"))), size)[1]
    model, lite = export(make(SparseKernel(kernel)), size)
    assert full.layers[0].nbytes - lite.layers[0].nbytes == 2 * np.count_nonzero(kernel)
    assert not lite.layers[0].exact
    assert_runs_like(model, lite, RNG.normal(size=(1, *size)).astype("float32"), 1e-5)
