"""What all blocks do: they run as one layer, as stock layers, and in every tool."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from tests.layers.blocks import CASES, make, numpy, samples


@pytest.mark.parametrize("name", CASES)
def test_layer_stock_layers_and_file_agree(name, tmp_path):
    block, x = make(name)
    expected = numpy(block(x))
    assert block.compute_output_shape(x.shape) == expected.shape
    unbuilt = type(block).from_config(block.get_config())
    assert unbuilt.compute_output_shape((None, *x.shape[1:])) == (None, *expected.shape[1:])
    expanded = block.expand()
    assert expanded.name == "block" and not any(
        isinstance(layer, kc.layers.Block) for layer in expanded.layers
    )
    np.testing.assert_allclose(numpy(expanded(x)), expected, rtol=1e-5, atol=1e-5)
    # Its layers as those of the model around it.
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, block.functional(inputs))
    np.testing.assert_allclose(numpy(model(x)), expected, rtol=1e-5, atol=1e-5)
    assert all(layer.name.startswith("block_") for layer in model.layers[1:])
    assert block.macs((None, *x.shape[1:])) == kc.profile.macs(expanded) > 0
    whole = keras.Sequential([keras.Input(x.shape[1:]), block])
    assert kc.profile.macs(whole) == kc.profile.macs(expanded)
    whole.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(whole(x)))
    assert loaded.layers[0].get_config() == block.get_config()


@pytest.mark.parametrize(
    "name", ["fire", "shuffle-strided", "residual-pad", "highway-dense", "lccl-shared"]
)
def test_training_reaches_every_weight_and_half_precision_runs(name):
    block, x = make(name)
    model = keras.Sequential([keras.Input(x.shape[1:]), block])
    model.compile("sgd", "mse", jit_compile=False)
    before = block.get_weights()
    model.fit(x, 0.1 * samples(model.output_shape[1:], len(x)), verbose=0)
    for old, new, weight in zip(before, block.get_weights(), block.weights, strict=True):
        # Moving averages of batch normalisations inside included; a shift that the next
        # normalisation takes away again has no gradient.
        assert (old != new).any() or weight.path.endswith("depthwise_norm/beta"), weight.path
    half, _ = make(name, dtype="mixed_float16")
    half.set_weights(before)
    block.set_weights(before)
    assert keras.backend.standardize_dtype(half(x).dtype) == "float16"
    scale = np.abs(numpy(block(x))).max()
    np.testing.assert_allclose(numpy(half(x)), numpy(block(x)), atol=0.02 * scale)
    assert half.compute_output_spec(keras.KerasTensor((None, *x.shape[1:]))).dtype == "float16"


def first(x):
    return np.moveaxis(x, -1, 1)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow's CPU kernels have channels last"
)
@pytest.mark.parametrize("name", [name for name in CASES if name != "highway-dense"])
def test_channels_first(name):
    block, x = make(name)
    build, _ = CASES[name]
    other = build(data_format="channels_first")
    other.build((None, *first(x).shape[1:]))
    other.set_weights(block.get_weights())
    np.testing.assert_allclose(numpy(other(first(x))), first(numpy(block(x))), rtol=1e-5, atol=1e-5)
    assert other.macs(first(x).shape) == block.macs(x.shape)


@pytest.mark.parametrize("name", [name for name in CASES if name != "highway-dense"])
def test_channels_first_counts_as_channels_last(name):
    build, shape = CASES[name]
    block, other = build(), build(data_format="channels_first")
    shapes = [(None, *shape), (None, shape[-1], *shape[:-1])]
    assert other.macs(shapes[1]) == block.macs(shapes[0])
    height, width, channels = block.compute_output_shape(shapes[0])[1:]
    assert other.compute_output_shape(shapes[1]) == (None, channels, height, width)


def test_a_model_of_blocks_opens_for_the_tools_of_single_layers():
    inputs = keras.Input((8, 8, 3))
    x = kc.layers.FireModule(4, 8, 8, name="fire")(inputs)
    x = kc.layers.ResidualBlock(16, name="residual")(x)
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    opened = kc.convert(model, {kc.layers.Block: lambda block: block.expand()})
    x = samples((8, 8, 3))
    np.testing.assert_allclose(numpy(opened(x)), numpy(model(x)), rtol=1e-5, atol=1e-6)
    small = kc.pruning.prune_channels(opened, "l1", 0.5)
    assert kc.profile.macs(small) < 0.5 * kc.profile.macs(opened)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="needs the number of channels .axis -1.* is a number"):
        kc.layers.ResidualBlock(4).build((None, 8, 8, None))
    with pytest.raises(ValueError, match="not built: call it on an input"):
        kc.layers.ResidualBlock(4).expand()
    with pytest.raises(ValueError, match="`data_format` must be one of"):
        kc.layers.ResidualBlock(4, data_format="channels")
