"""TensorRegression against Flatten and Dense, and the CP and Tucker forms against tensorly."""

import keras
import numpy as np
import pytest
from keras import ops
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac, tucker
from tensorly.tucker_tensor import tucker_to_tensor

from keras_compress import convert
from keras_compress.decomposition import multilinear
from keras_compress.layers import TensorRegression

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)


def built(units, shape, **arguments):
    layer = TensorRegression(units, bias_initializer="ones", **arguments)
    layer.build((None, *shape))
    return layer


def inputs(shape, rows=3):
    return np.random.default_rng(0).normal(size=(rows, *shape)).astype("float32")


def dense_of(tensor):
    dense = keras.layers.Dense(tensor.shape[-1], bias_initializer="ones")
    dense.build((None, tensor[..., 0].size))
    dense.kernel.assign(tensor.reshape(-1, tensor.shape[-1]))
    return dense


def low_rank_tensor(shape, rank, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    tensor = cp_to_tensor((None, [rng.normal(size=(length, rank)) for length in shape]))
    noisy = rng.normal(size=shape)
    return tensor + noise * np.linalg.norm(tensor) / np.linalg.norm(noisy) * noisy


def error(found, tensor):
    return np.linalg.norm(found - tensor) / np.linalg.norm(tensor)


def tensor_by_tensorly(layer):
    factors = [ops.convert_to_numpy(factor) for factor in layer.factors]
    if layer.form == "cp":
        return cp_to_tensor((None, factors))
    return tucker_to_tensor((factors[-1], factors[:-1]))


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 5), (3, 2, 4, 2)])
@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_tensor_learn_equals_flatten_and_dense_of_the_reconstructed_weight(form, shape):
    layer = built(7, shape, form=form, rank=3)
    tensor = tensor_by_tensorly(layer)
    np.testing.assert_allclose(layer.reconstruct_tensor(), tensor, atol=1e-6)
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), layer.expand()])
    np.testing.assert_array_equal(model.layers[-1].bias, np.ones(7))
    x = inputs(shape)
    np.testing.assert_allclose(layer(x), model(x), atol=1e-5)
    by_definition = np.tensordot(x, tensor, len(shape)) + 1
    np.testing.assert_allclose(layer(x), by_definition, atol=1e-5)


def test_tensor_learn_params_and_macs_are_those_of_the_factors():
    cp = built(10, (4, 5, 6), rank=3, use_bias=False)
    assert cp.count_params() == 3 * (4 + 5 + 6 + 10)
    assert cp.macs() == 3 * (4 * 5 * 6 + 4 * 5 + 4 + 10)
    tucker = built(10, (4, 5, 6), form="tucker", rank=(2, 3, 4, 5), use_bias=False)
    assert tucker.count_params() == 4 * 2 + 5 * 3 + 6 * 4 + 10 * 5 + 2 * 3 * 4 * 5
    steps = (4 * 5 * 6 * 4, 4 * 5 * 4 * 3, 4 * 4 * 3 * 2, 2 * 3 * 4 * 5, 5 * 10)
    assert tucker.macs() == sum(steps)


@pytest.mark.parametrize("rank", [2, 4, 6])
def test_tensor_learn_cp_error_is_within_1_percent_of_tensorlys(rank):
    tensor = low_rank_tensor((4, 5, 6, 7), 4)
    found = TensorRegression.from_layer(dense_of(tensor), input_shape=(4, 5, 6), rank=rank)
    theirs = min(
        error(cp_to_tensor(parafac(tensor, rank, 100, init="random", random_state=s)), tensor)
        for s in range(3)
    )
    assert error(found.reconstruct_tensor(), tensor) <= 1.01 * theirs


@pytest.mark.parametrize("shape, rank", [((6, 7, 8), (2, 3, 4)), ((4, 5, 6, 7), (2, 2, 4, 3))])
def test_tensor_learn_tucker_error_is_within_1_percent_of_tensorlys(shape, rank):
    tensor = low_rank_tensor(shape, 4)
    options = {"input_shape": shape[:-1], "form": "tucker", "rank": rank}
    found = TensorRegression.from_layer(dense_of(tensor), **options)
    theirs = tucker_to_tensor(tucker(tensor, rank, n_iter_max=100, tol=1e-9))
    assert error(found.reconstruct_tensor(), tensor) <= 1.01 * error(theirs, tensor)


def test_tucker_is_exact_at_full_ranks_and_its_bases_are_orthonormal():
    tensor = np.random.default_rng(1).normal(size=(3, 4, 5, 2))
    limits = multilinear.tucker_limits(tensor.shape)
    core, bases = multilinear.fit_tucker(tensor, limits)
    np.testing.assert_allclose(multilinear.tucker_to_tensor(core, bases), tensor, atol=1e-10)
    core, bases = multilinear.fit_tucker(tensor, (2, 3, 3, 2))
    for basis in bases:
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-10)
    projected = np.einsum("ijkl,ia,jb,kc,ld->abcd", tensor, *bases)
    np.testing.assert_allclose(core, projected, atol=1e-10)


def test_from_layer_recovers_the_rank_of_a_kernel_by_policy():
    tensor = low_rank_tensor((6, 7, 8, 9), 3, noise=0.0)
    shape = (6, 7, 8)
    cp = TensorRegression.from_layer(dense_of(tensor), input_shape=shape, rank=1.0)
    assert cp.rank == 3
    assert error(cp.reconstruct_tensor(), tensor) < 1e-3
    tucker = TensorRegression.from_layer(
        dense_of(tensor), input_shape=shape, form="tucker", rank=0.9999
    )
    assert tucker.rank == (3, 3, 3, 3)
    assert error(tucker.reconstruct_tensor(), tensor) < 0.02


def test_two_axes_are_fitted_as_three():
    tensor = low_rank_tensor((8, 9, 10), 3, noise=0.0)
    layer = TensorRegression.from_layer(dense_of(tensor), input_shape=(8, 9), rank=3)
    assert [tuple(f.shape) for f in layer.factors] == [(8, 3), (9, 3), (10, 3)]
    assert error(layer.reconstruct_tensor(), tensor) < 1e-3


@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_tensor_learn_keras_file_round_trip_is_bitwise_and_convert_swaps_flatten_and_dense(
    form, tmp_path
):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(5, 3),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(8, name="fc"),
        ]
    )
    model.layers[-1].kernel.assign(low_rank_tensor((4, 4, 5, 8), 2, 0.0).reshape(80, 8))
    small = convert(
        model,
        {
            "flatten": lambda layer: keras.layers.Identity(),
            "fc": lambda layer: TensorRegression.from_layer(
                layer, input_shape=(4, 4, 5), form=form, rank=2
            ),
        },
    )
    x = inputs((6, 6, 2))
    np.testing.assert_allclose(small(x), model(x), rtol=1e-3, atol=1e-3)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(again(x), small(x))


@on_tensorflow
@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_tflite_stores_the_factors_alone(form):
    from keras_compress.export import to_tflite

    layer = built(200, (7, 7, 64), form=form, rank=6)
    model = keras.Sequential([keras.Input((7, 7, 64)), layer])
    x = inputs((7, 7, 64))
    lite = to_tflite(model, calibration=x)
    assert lite.nbytes < layer.storage_bits() / 8 + 6000 < 4 * 7 * 7 * 64 * 200 / 50
    assert lite.max_error < 1e-4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"form": "tt"}, "`form` must be one of 'cp', 'tucker'"),
        ({"rank": 0}, "`rank` must be a positive integer"),
        ({"rank": 0.5}, "rank=0.5 is chosen by the singular values"),
        ({"rank": (2, 3)}, "`rank` must be an integer here"),
        ({"form": "tucker", "rank": (2, 0, 1)}, r"`rank\[1\]` must be a positive integer"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=f"TensorRegression: .*{message}"):
        TensorRegression(4, **arguments)


@pytest.mark.parametrize(
    "shape, arguments, message",
    [
        ((12,), {}, "two axes or more"),
        ((None, 4, 5), {}, "none of them open"),
        ((2, 3), {"rank": 7}, "got rank=7, the largest useful rank is 6"),
        ((2, 3), {"form": "tucker", "rank": (2, 2)}, "an integer or 3 integers"),
        ((2, 3), {"form": "tucker", "rank": (2, 4, 1)}, r"rank\[1\]=4 is larger"),
    ],
)
def test_what_the_input_does_not_allow_is_refused_at_build(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        built(4, shape, **arguments)


def test_from_layer_refuses_a_shape_that_is_not_the_flattened_one():
    dense = dense_of(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"flattened to the 6 inputs .*input_shape=\(2, 4\)"):
        TensorRegression.from_layer(dense, input_shape=(2, 4), rank=1)
    dense = dense_of(np.ones((2, 1, 3, 2, 4)))
    with pytest.raises(ValueError, match="Use form='tucker'"):
        TensorRegression.from_layer(dense, input_shape=(2, 1, 3, 2), rank=1)
