"""`BlockPruning`: which blocks are zero, and that they stay so."""

import keras
import numpy as np
import pytest

import keras_compress as kc

RNG = np.random.default_rng(0)
BlockPruning = kc.callbacks.BlockPruning


def two_layers():
    model = keras.Sequential(
        [
            keras.Input((24,)),
            keras.layers.Dense(16, activation="tanh", name="first"),
            keras.layers.Dense(12, name="second"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


X, Y = RNG.normal(size=(32, 24)).astype("float32"), RNG.normal(size=(32, 12)).astype("float32")


def fit(model, *callbacks, epochs=1):
    return model.fit(X, Y, epochs=epochs, batch_size=16, verbose=0, callbacks=list(callbacks))


def kernel(model, name):
    return keras.ops.convert_to_numpy(model.get_layer(name).kernel)


def block_map(matrix, height, width):
    """Which blocks are not zero; each must be whole."""
    rows, columns = matrix.shape
    blocks = (matrix != 0).reshape(rows // height, height, columns // width, width)
    assert (blocks.any((1, 3)) == blocks.all((1, 3))).all()
    return blocks.any((1, 3))


@pytest.mark.parametrize("choice", ["random", "magnitude"])
def test_each_block_of_outputs_keeps_the_same_number_of_blocks(choice):
    model = two_layers()
    history = fit(model, BlockPruning((4, 4), 0.5, choice), epochs=2)
    assert (block_map(kernel(model, "first"), 4, 4).sum(0) == 3).all()
    assert (block_map(kernel(model, "second"), 4, 4).sum(0) == 2).all()
    assert history.history["sparsity"] == [0.5, 0.5]


def test_magnitude_keeps_the_largest_blocks():
    for balanced in (True, False):
        model = two_layers()
        before = kernel(model, "first")
        sums = np.abs(before).reshape(3, 8, 4, 4).sum((1, 3))
        fit(model, BlockPruning((8, 4), 2 / 3, "magnitude", balanced, layers="first"))
        found = block_map(kernel(model, "first"), 8, 4)
        if balanced:
            np.testing.assert_array_equal(found, sums == sums.max(0))
        else:
            assert sorted(sums[found]) == sorted(sums.ravel())[-4:]
        assert (kernel(model, "second") != 0).all()


def test_random_choice_comes_from_the_seed_and_differs_between_layers():
    maps = []
    for seed in (1, 1, 2):
        model = two_layers()
        fit(model, BlockPruning(4, 0.5, seed=seed))
        maps.append([block_map(kernel(model, n), 4, 4) for n in ("first", "second")])
    np.testing.assert_array_equal(maps[0][0], maps[1][0])
    assert (maps[0][0] != maps[2][0]).any()
    assert (maps[0][0][:4, :3] != maps[0][1]).any()


def test_a_later_fit_and_a_saved_model_keep_the_choice(tmp_path):
    model = two_layers()
    pruning = {"block_size": 4, "sparsity": 0.5, "choice": "magnitude"}
    fit(model, BlockPruning(**pruning))
    first = kernel(model, "first") != 0
    fit(model)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    fit(model, BlockPruning(**pruning))
    np.testing.assert_array_equal(kernel(model, "first") != 0, first)
    plain = kc.pruning.strip(model)
    np.testing.assert_array_equal(kernel(plain, "first"), kernel(model, "first"))
    # Another callback chooses anew.
    fit(model, BlockPruning(4, 0.75))
    assert (kernel(model, "first") != 0).mean() <= 0.25 + 1 / 24


def test_blocks_at_the_edges_are_smaller_and_convolutions_are_matrices():
    model = keras.Sequential(
        [keras.Input((5, 5, 3)), keras.layers.Conv2D(5, 3, name="conv"), keras.layers.Flatten()]
    )
    model.compile("sgd", "mse")
    x, y = RNG.normal(size=(8, 5, 5, 3)), RNG.normal(size=(8, 45))
    model.fit(x, y, verbose=0, callbacks=[BlockPruning((9, 2), 1 / 3)])
    matrix = np.zeros((27, 6))
    matrix[:, :5] = kernel(model, "conv").reshape(27, 5)
    matrix[:, 5] = matrix[:, 4]
    assert (block_map(matrix, 9, 2).sum(0) == 2).all()


def test_a_pruned_layer_becomes_a_block_sparse_dense_with_the_same_outputs():
    model = two_layers()
    fit(model, BlockPruning((4, 4), 0.5), epochs=2)
    plain = kc.pruning.strip(model)
    small = kc.convert(
        plain,
        {
            "*": lambda layer: kc.layers.BlockSparseDense.from_layer(
                layer, block_size=(4, 4), density=0.5
            )
        },
    )
    np.testing.assert_allclose(small(X), plain(X), atol=1e-5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="choice='best'"):
        BlockPruning(choice="best")
    with pytest.raises(ValueError, match="side of a square one"):
        BlockPruning((4, 4, 4))
    with pytest.raises(ValueError, match="sparsity"):
        BlockPruning(sparsity=1.0)
