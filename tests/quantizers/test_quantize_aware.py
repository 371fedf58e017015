"""quantize_aware: grids, folded batch normalisation, and integer kernels that give the same."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_compress as kc
from keras_compress.layers import (
    FakeQuant,
    FakeQuantBatchNormalization,
    FakeQuantConv2D,
    FakeQuantDense,
    FakeQuantDepthwiseConv2D,
)
from keras_compress.quantizers import freeze_statistics, quantize_aware

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="export needs the TensorFlow backend"
)
KERNEL_LAYERS = (FakeQuantConv2D, FakeQuantDense, FakeQuantDepthwiseConv2D)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 12, 12, 3)).astype("float32")
LABELS = RNG.integers(0, 4, 32)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(3)


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def shaken(model, seed=0):
    """Gives biases and batch normalisations values as after training."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.path.endswith(("bias", "beta", "moving_mean")):
            weight.assign(0.2 * rng.normal(size=weight.shape))
    return model


def residual():
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.BatchNormalization()(y)
    y = layers.ReLU(6.0)(y)
    y = layers.Conv2D(8, 1, name="project")(y)
    y = layers.BatchNormalization()(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return shaken(keras.Model(inputs, layers.Dense(4, name="logits")(x)))


def branches():
    inputs = keras.Input((12, 12, 3))
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    a = layers.MaxPooling2D()(x)
    b = layers.SeparableConv2D(6, 3, strides=2, padding="same", activation="relu")(x)
    c = layers.Conv2D(4, 2, strides=2, activation="sigmoid")(x)
    x = layers.Concatenate()([a, b, c])
    x = layers.BatchNormalization()(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(18, 1, activation="tanh")(gate)
    x = x * gate
    x = layers.Flatten()(layers.Dropout(0.2)(x))
    x = layers.Dense(12, use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.BatchNormalization()(layers.Activation("silu")(x))
    return shaken(keras.Model(inputs, layers.Dense(4, activation="softmax")(x)))


def sequential():
    return shaken(
        keras.Sequential(
            [
                keras.Input((12, 12, 3)),
                layers.Conv2D(6, 3, activation="relu", name="conv"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(16, activation="relu", name="hidden"),
                layers.Dense(4, name="logits"),
            ]
        )
    )


# The layers.


@pytest.mark.parametrize("bits, low, high", [(8, -1.7, 2.9), (4, 0.0, 6.0), (8, -3.0, 0.0)])
def test_activations_land_on_the_affine_grid_of_their_range(bits, low, high):
    x = RNG.uniform(low - 1, high + 1, 500).astype("float32")
    step = (high - low) / (2**bits - 1)
    zero = np.round(-low / step)
    codes = np.clip(np.floor(x / step + 0.5) + zero, 0, 2**bits - 1)
    rounded = array(FakeQuant(bits, limits=(low, high))(x))
    # A value midway between two steps may go either way with the last bit of the step.
    midway = np.abs(x / step - np.floor(x / step) - 0.5) < 1e-3
    np.testing.assert_allclose(rounded[~midway], ((codes - zero) * step)[~midway], atol=1e-5)
    assert array(FakeQuant(bits, limits=(low, high))(np.zeros(1, "float32"))) == 0


def test_ranges_are_moving_averages_that_start_as_means_and_hold_zero():
    layer = FakeQuant(decay=0.75)
    lows, highs = [], []
    for scale in (1.0, 3.0, 2.0, 5.0, 0.5):
        batch = (scale * RNG.normal(size=(7, 9))).astype("float32")
        layer(batch, training=True)
        lows.append(batch.min())
        highs.append(batch.max())
    low, high = np.mean(lows[:4]), np.mean(highs[:4])
    expected = (0.75 * low + 0.25 * lows[4], 0.75 * high + 0.25 * highs[4])
    np.testing.assert_allclose(layer.range(), expected, rtol=1e-5)
    positive = FakeQuant()
    positive(np.array([2.0, 3.0], "float32"), training=True)
    assert positive.range() == (0.0, 3.0)


def test_inputs_pass_unchanged_before_any_range_was_seen():
    layer = FakeQuant()
    np.testing.assert_array_equal(array(layer(X)), X)
    with pytest.raises(ValueError, match="range is not known"):
        layer.range()


def test_sites_share_the_smallest_range_that_covers_all():
    layer = FakeQuant(sites=2)
    layer(np.array([-1.0, 1.0], "float32"), site=0, training=True)
    layer(np.array([0.5, 4.0], "float32"), site=1, training=True)
    layer(np.array([-9.0], "float32"), site=None, training=True)
    assert layer.range() == (-1.0, 4.0)


def gradient(function, x):
    """Gradient of the sum of `function(x) * (1, 2, ...)`, on any backend."""
    variable = keras.Variable(x)
    weights = np.arange(1, x.size + 1, dtype="float32").reshape(x.shape)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ops.sum(function(variable.value) * weights)
        return array(tape.gradient(loss, variable.value))
    import jax

    return array(jax.grad(lambda v: ops.sum(function(v) * weights))(variable.value))


def test_gradient_of_activations_passes_inside_of_the_range_only():
    layer = FakeQuant(limits=(-1.0, 2.0))
    x = np.array([-3.0, -0.9, 0.0, 1.9, 2.5], "float32")
    np.testing.assert_array_equal(gradient(layer, x), [0, 2, 3, 4, 0])


@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_are_integers_times_a_step_for_each_channel(bits):
    stock = layers.Conv2D(5, 3)
    stock.build((None, 8, 8, 4))
    layer = FakeQuantConv2D.from_layer(stock, weight_bits=bits)
    top = 2 ** (bits - 1) - 1
    kernel = array(stock.kernel)
    step = np.abs(kernel).max((0, 1, 2)) / top
    grid = layer.grid_kernel()
    np.testing.assert_allclose(grid.scale, step, rtol=1e-6)
    assert np.abs(grid.ints).max((0, 1, 2)).tolist() == [top] * 5
    np.testing.assert_array_equal(grid.ints, np.round(kernel / step))
    np.testing.assert_allclose(layer.reconstruct_kernel(), grid.dense(), rtol=1e-5, atol=1e-8)


def test_channels_of_zeros_have_a_finite_step():
    stock = layers.Conv2D(3, 3)
    stock.build((None, 8, 8, 2))
    kernel = array(stock.kernel).copy()
    kernel[..., 1] = 0
    stock.kernel.assign(kernel)
    layer = FakeQuantConv2D.from_layer(stock)
    assert np.isfinite(array(layer(X[..., :2]))).all()
    assert (layer.reconstruct_kernel()[..., 1] == 0).all()
    assert (layer.grid_kernel().scale > 0).all()


def test_gradient_of_the_kernel_is_that_of_the_rounded_one_unclipped():
    layer = FakeQuantDense(5, weight_bits=3, use_bias=False)
    layer.build((None, 6))
    x = RNG.normal(size=(4, 6)).astype("float32")
    kernel = array(layer.kernel)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ops.sum(layer(x, training=True) ** 2)
        given = array(tape.gradient(loss, layer.kernel.value))
    else:
        import jax

        def loss(value):
            outputs, _ = layer.stateless_call([value], [], x, training=True)
            return ops.sum(outputs**2)

        given = array(jax.grad(loss)(layer.kernel.value))
    rounded = layer.reconstruct_kernel()
    assert np.abs(rounded - kernel).max() > 0
    np.testing.assert_allclose(given, 2 * x.T @ (x @ rounded), rtol=1e-4, atol=1e-4)


CASES = {
    "conv": (layers.Conv2D(5, 3, strides=2), FakeQuantConv2D, (9, 9, 4)),
    "depthwise": (
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        FakeQuantDepthwiseConv2D,
        (9, 9, 4),
    ),
    "dense": (layers.Dense(5), FakeQuantDense, (7,)),
}


def kernel_and_norm(name):
    stock, cls, shape = CASES[name]
    stock = type(stock).from_config(stock.get_config())
    norm = layers.BatchNormalization(momentum=0.8)
    model = shaken(keras.Sequential([keras.Input(shape), stock, norm]))
    x = np.random.default_rng(5).normal(size=(16, *shape)).astype("float32")
    return model, cls.from_layer(stock, norm), x


@pytest.mark.parametrize("name", CASES)
def test_batch_norm_folds_into_the_kernel_before_it_is_rounded(name):
    model, layer, x = kernel_and_norm(name)
    stock, norm = model.layers
    scale = array(norm.gamma) / np.sqrt(array(norm.moving_variance) + norm.epsilon)
    kernel = array(stock.kernel)
    flat = kernel.reshape(*kernel.shape[:-2], -1) if name == "depthwise" else kernel
    folded = flat * scale
    axes = None if name == "dense" else tuple(range(folded.ndim - 1))
    step = np.abs(folded).max(axes) / 127
    rounded = (np.round(folded / step) * step).reshape(kernel.shape)
    bias = array(norm.beta) + (array(stock.bias) - array(norm.moving_mean)) * scale
    np.testing.assert_allclose(layer.reconstruct_kernel(), rounded, atol=1e-6)
    stock.kernel.assign(rounded)
    stock.bias.assign(bias)
    np.testing.assert_allclose(array(layer(x)), array(stock(x)), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_training_normalises_with_the_batch_as_a_layer_behind_the_rounded_kernel_would(name):
    model, layer, x = kernel_and_norm(name)
    stock, norm = model.layers
    scale = array(norm.gamma) / np.sqrt(array(norm.moving_variance) + norm.epsilon)
    if name == "depthwise":
        scale = scale.reshape(4, 2)
    stock.kernel.assign(layer.reconstruct_kernel() / scale)
    expected = array(model(x, training=True))
    np.testing.assert_allclose(array(layer(x, training=True)), expected, atol=2e-4)
    own = layer.batch_norm
    np.testing.assert_allclose(array(own.moving_mean), array(norm.moving_mean), atol=1e-5)
    np.testing.assert_allclose(array(own.moving_variance), array(norm.moving_variance), rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_frozen_statistics_stay_and_training_computes_as_inference_does(name):
    _, layer, x = kernel_and_norm(name)
    layer.frozen.assign(1.0)
    before = array(layer.batch_norm.moving_mean).copy(), array(layer(x))
    np.testing.assert_allclose(array(layer(x, training=True)), before[1], atol=1e-5)
    np.testing.assert_array_equal(array(layer.batch_norm.moving_mean), before[0])


def test_a_scale_of_zero_leaves_the_offset_and_the_statistics():
    _, layer, x = kernel_and_norm("conv")
    layer.batch_norm.gamma.assign(np.zeros(5))
    before = array(layer.batch_norm.moving_variance).copy()
    outputs = array(layer(x, training=True))
    np.testing.assert_allclose(
        outputs, np.broadcast_to(array(layer.batch_norm.beta), outputs.shape)
    )
    np.testing.assert_array_equal(array(layer.batch_norm.moving_variance), before)


@pytest.mark.parametrize("masked", [False, True])
def test_lone_batch_norm_trains_as_the_stock_layer_does_and_can_be_frozen(masked):
    stock = layers.BatchNormalization(momentum=0.8)
    shaken(keras.Sequential([keras.Input((6, 4)), stock]))
    layer = FakeQuantBatchNormalization.from_layer(stock)
    x = RNG.normal(size=(5, 6, 4)).astype("float32")
    still = array(layer(x))
    layer.frozen.assign(1.0)
    np.testing.assert_allclose(array(layer(x, training=True)), still, atol=1e-5)
    layer.frozen.assign(0.0)
    mask = np.arange(6) < np.arange(2, 7)[:, None] if masked else None
    expected = array(stock(x, training=True, mask=mask))
    np.testing.assert_allclose(array(layer(x, training=True, mask=mask)), expected, atol=1e-4)
    np.testing.assert_allclose(
        array(layer.moving_variance), array(stock.moving_variance), rtol=1e-5
    )


# Whole models.


def steps_apart(lite, model, x):
    """Differences of the outputs, in steps of the last grid."""
    grid = [layer for layer in model.layers if isinstance(layer, FakeQuant)][-1]
    low, high = grid.range()
    return np.abs(lite.predict(x) - model.predict(x, verbose=0)) / ((high - low) / 255)


@on_tensorflow
@pytest.mark.parametrize("build, share", [(residual, 0.1), (branches, 0.4), (sequential, 0.05)])
def test_trained_model_exports_to_integer_kernels_that_give_its_outputs(build, share, tmp_path):
    source = build()
    before = [array(w).copy() for w in source.weights]
    model = quantize_aware(source, data=X)
    from_logits = build is not branches
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    losses = model.fit(X, LABELS, epochs=10, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    lite = kc.export.to_tflite(model, tmp_path / "model.tflite")
    assert lite.ops[0] == "QUANTIZE" and lite.ops[-1] == "DEQUANTIZE"
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(lite.ops[1:-1])
    types = {t["dtype"] for t in lite.interpreter(delegate=False).get_tensor_details()}
    assert types <= {np.int8, np.int32, np.float32}
    floats = [
        t["name"]
        for t in lite.interpreter(delegate=False).get_tensor_details()
        if t["dtype"] is np.float32
    ]
    assert len(floats) == 2, floats
    # A value near midway between two steps goes up here and down there; layers behind it see that,
    # and a softmax multiplies it.
    steps = steps_apart(lite, model, X)
    assert steps.max() <= 3.01 and np.mean(steps > 0.5) <= share
    for weight, old in zip(source.weights, before, strict=True):
        np.testing.assert_array_equal(array(weight), old)


ONE_LAYER = {
    "conv": lambda x: layers.Conv2D(8, 3, activation="relu6")(x),
    "depthwise": lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x),
    "dense": lambda x: layers.Dense(8)(layers.Flatten()(x)),
    "concatenate": lambda x: layers.Concatenate()([x, layers.Conv2D(3, 1)(x)]),
    "add": lambda x: layers.Add()([x, layers.Conv2D(4, 1)(x), x]),
    "average": lambda x: layers.AveragePooling2D(2)(layers.Conv2D(4, 1)(x)),
    "mean": lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(x)),
    "batch norm": lambda x: layers.BatchNormalization()(
        layers.Permute((2, 1, 3))(layers.Conv2D(4, 1)(x))
    ),
}


@on_tensorflow
@pytest.mark.parametrize("name", ONE_LAYER)
def test_one_layer_is_within_a_step(name):
    inputs = keras.Input((8, 8, 4))
    source = shaken(keras.Model(inputs, ONE_LAYER[name](inputs)))
    x = np.random.default_rng(1).normal(size=(64, 8, 8, 4)).astype("float32")
    model = quantize_aware(source, data=x)
    steps = steps_apart(kc.export.to_tflite(model), model, x)
    # A lone batch normalisation multiplies the step that the convolution before it may be off.
    assert steps.max() <= (2.01 if name == "batch norm" else 1.01)
    assert np.mean(steps > 0.5) <= 0.01


@on_tensorflow
def test_scales_in_the_file_are_those_trained_with():
    source = keras.Sequential([keras.Input((16, 16, 16)), layers.Conv2D(64, 3, use_bias=False)])
    x = RNG.normal(size=(8, 16, 16, 16)).astype("float32")
    model = quantize_aware(source, data=x)
    lite = kc.export.to_tflite(model)
    kernel = next(
        t
        for t in lite.interpreter(delegate=False).get_tensor_details()
        if len(t["shape"]) == 4 and tuple(t["shape"]) == (64, 3, 3, 16)
    )
    scales = kernel["quantization_parameters"]["scales"]
    np.testing.assert_allclose(
        scales, np.abs(array(source.layers[0].kernel)).max((0, 1, 2)) / 127, rtol=1e-6
    )


@pytest.mark.parametrize("build", [residual, branches])
def test_untrained_int8_model_predicts_what_the_source_does_to_8_bits(build):
    source = build()
    model = quantize_aware(source, data=X)
    expected = source.predict(X, verbose=0)
    error = np.abs(model.predict(X, verbose=0) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.06


def test_ranges_and_all_state_survive_a_keras_file(tmp_path):
    model = quantize_aware(branches())
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, LABELS, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))
    first = [layer.range() for layer in model.layers if isinstance(layer, FakeQuant)]
    assert [layer.range() for layer in again.layers if isinstance(layer, FakeQuant)] == first


def test_training_observes_ranges_and_freeze_statistics_stops_them():
    model = quantize_aware(residual())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, LABELS, epochs=1, verbose=0)

    def state():
        return [array(w).copy() for w in model.non_trainable_weights]

    freeze_statistics(model)
    before = state()
    kernel = array(model.get_layer("stem").kernel).copy()
    # The same compiled step goes on.
    model.fit(X, LABELS, epochs=1, verbose=0)
    for old, new in zip(before, state(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert np.abs(array(model.get_layer("stem").kernel) - kernel).max() > 0
    freeze_statistics(model, False)
    model.fit(X, LABELS, epochs=1, verbose=0)
    assert any(np.abs(new - old).max() > 0 for old, new in zip(before, state(), strict=True))
    with pytest.raises(ValueError, match="no moving statistics"):
        freeze_statistics(sequential())


def test_activations_are_fused_and_batch_norms_folded_away():
    model = quantize_aware(residual())
    kinds = [type(layer).__name__ for layer in model.layers]
    assert "BatchNormalization" not in kinds and "FakeQuantBatchNormalization" not in kinds
    # One grid each: input, stem, depthwise, project, sum, average, logits.
    assert kinds.count("FakeQuant") == 7


def test_concatenated_tensors_share_one_grid_and_rounding_happens_before_it():
    inputs = keras.Input((6,))
    a, b = layers.Dense(4, name="a")(inputs), layers.Dense(3, name="b")(inputs)
    joined = layers.Concatenate(name="joined")([a, b])
    source = keras.Model(inputs, [joined, layers.Dense(2, name="c")(a)])
    x = RNG.normal(size=(20, 6)).astype("float32")
    model = quantize_aware(source, data=x)
    grids = [layer for layer in model.layers if isinstance(layer, FakeQuant)]
    (shared,) = [grid for grid in grids if grid.sites == 2]
    both = np.concatenate([x @ array(model.get_layer(n).expand().kernel) for n in "ab"], 1)
    low, high = shared.range()
    assert low == pytest.approx(both.min(), rel=0.02) and high == pytest.approx(
        both.max(), rel=0.02
    )
    codes = array(model(x)[0]) / ((high - low) / 255)
    np.testing.assert_allclose(codes, np.round(codes), atol=2e-3)


def test_nested_and_sequential_models_become_one_graph_with_shared_layers():
    head = keras.Sequential([keras.Input((8,)), layers.Dense(8, activation="relu", name="fc")])
    inner_in = keras.Input((6,))
    inner = keras.Model(inner_in, layers.Dense(8, name="fc")(inner_in), name="inner")
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    joined = layers.Add()([head(inner(left)), head(inner(right))])
    source = keras.Model(
        {"left": left, "right": right}, {"out": layers.Dense(2, name="last")(joined)}
    )
    data = {key: RNG.normal(size=(16, 6)).astype("float32") for key in ("left", "right")}
    model = quantize_aware(source, data=data)
    assert sum(isinstance(layer, FakeQuantDense) for layer in model.layers) == 3
    expected = array(source(data)["out"])
    assert np.abs(array(model(data)["out"]) - expected).max() < 0.05 * np.abs(expected).max()


def test_layers_chooses_and_the_rest_stays_in_float():
    source = sequential()
    model = quantize_aware(source, layers=["conv", "hid*"], data=X)
    kinds = {layer.name: type(layer) for layer in model.layers}
    assert kinds["conv"] is FakeQuantConv2D and kinds["hidden"] is FakeQuantDense
    assert kinds["logits"] is layers.Dense
    np.testing.assert_array_equal(
        array(model.get_layer("logits").kernel), array(source.get_layer("logits").kernel)
    )


@on_tensorflow
def test_layers_left_out_run_in_float_behind_the_integer_ones():
    model = quantize_aware(sequential(), layers="conv", data=X)
    lite = kc.export.to_tflite(model, calibration=X)
    assert lite.ops[:2] == ["QUANTIZE", "CONV_2D"]
    behind = lite.ops[lite.ops.index("DEQUANTIZE") :]
    assert behind.count("FULLY_CONNECTED") == 2 and "QUANTIZE" not in behind
    assert lite.max_error < 0.02


def test_a_layer_without_quantised_form_stays_in_float_and_is_named():
    inputs = keras.Input((8,))
    x = layers.ELU(name="elu")(layers.Dense(8, name="a")(inputs))
    source = keras.Model(inputs, layers.Dense(2, name="b")(x))
    with pytest.warns(UserWarning, match="'elu'"):
        model = quantize_aware(source)
    assert isinstance(model.get_layer("b"), FakeQuantDense)


@on_tensorflow
def test_zeros_padded_on_are_on_the_grid_of_what_they_pad():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = quantize_aware(kc.models.ResNetCIFAR((12, 12, 3), classes=4, depth=8), data=X)
    lite = kc.export.to_tflite(model)
    assert "PAD" in lite.ops and lite.ops.count("QUANTIZE") == 1
    # One step of the softmax's grid.
    assert np.abs(lite.predict(X) - model.predict(X, verbose=0)).max() <= 1 / 256


def test_other_values_padded_on_stay_in_float():
    x = inputs = keras.Input((4, 3))
    x = layers.Dense(3, name="a")(x)
    x = ops.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=0.3)
    with pytest.warns(UserWarning, match=r"\(Pad\)"):
        quantize_aware(keras.Model(inputs, layers.Dense(2, name="b")(x)))


@on_tensorflow
@pytest.mark.parametrize(
    "scheme, dense, conv, error",
    [
        ("int8_weights", "FULLY_CONNECTED int8", "CONV_2D int8", 0.03),
        ("int4_weights", "FULLY_CONNECTED int4", "CONV_2D int8", 0.03),
    ],
)
def test_weight_schemes_store_the_trained_integers_natively(scheme, dense, conv, error):
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(32, 1, activation="silu", name="pointwise")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x))
    model = quantize_aware(shaken(keras.Model(inputs, x)), scheme)
    assert not any(isinstance(layer, FakeQuant) for layer in model.layers)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, LABELS, epochs=1, verbose=0)
    lite = kc.export.to_tflite(model, calibration=X)
    stored = {layer.layer: layer.kernel for layer in lite.layers}
    assert stored == {"conv": conv, "pointwise": dense, "logits": dense}
    assert lite.max_error < error
    top = 7 if scheme == "int4_weights" else 127
    assert np.abs(model.get_layer("logits").grid_kernel().ints).max() == top


@on_tensorflow
def test_mobilenet_v2_converts_to_integer_kernels_alone():
    source = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=4
    )
    x = RNG.normal(size=(8, 32, 32, 3)).astype("float32")
    lite = kc.export.to_tflite(quantize_aware(source, data=x))
    assert lite.ops.count("DEPTHWISE_CONV_2D") == 17 and lite.ops.count("CONV_2D") == 35
    assert not {"QUANTIZE", "DEQUANTIZE", "MUL"} & set(lite.ops[1:-1])


@on_tensorflow
def test_export_says_what_is_missing_or_does_not_go_together():
    model = quantize_aware(sequential())
    with pytest.raises(ValueError, match="range is not known.*`data`"):
        kc.export.to_tflite(model)
    with pytest.raises(ValueError, match="quantize='dynamic'"):
        kc.export.to_tflite(quantize_aware(sequential(), data=X), quantize="dynamic")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize(
    "message, call",
    [
        ("scheme='int7'.*'int8'", lambda: quantize_aware(sequential(), "int7")),
        ("16x8.*calibration", lambda: quantize_aware(sequential(), "16x8")),
        (
            "No layer matches 'hiden'.*'hidden'",
            lambda: quantize_aware(sequential(), layers="hiden"),
        ),
        (
            "'flatten.*has no quantised form",
            lambda: quantize_aware(sequential(), layers=layers.Flatten),
        ),
        (
            "chooses no layer with a kernel",
            lambda: quantize_aware(sequential(), layers="max_pool*"),
        ),
        ("subclassed", lambda: quantize_aware(Subclassed())),
        ("not built", lambda: quantize_aware(keras.Sequential([layers.Dense(2)]))),
        ("takes a keras.Model", lambda: quantize_aware(layers.Dense(2))),
        ("quantised already", lambda: quantize_aware(quantize_aware(sequential()))),
        ("`data` must be samples", lambda: quantize_aware(sequential(), data=X[:0])),
        (
            "no layer with a quantised form",
            lambda: quantize_aware(keras.Sequential([keras.Input((4,)), layers.ReLU()])),
        ),
        ("`bits`", lambda: FakeQuant(bits=1)),
        ("around zero", lambda: FakeQuant(limits=(1.0, 2.0))),
        ("`decay`", lambda: FakeQuant(decay=1.0)),
        ("`weight_bits`", lambda: FakeQuantDense(3, weight_bits=9)),
        ("`granularity`", lambda: FakeQuantDense(3, granularity="row")),
        ("`batch_norm`", lambda: FakeQuantDense(3, batch_norm="yes")),
    ],
)
def test_bad_input_is_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
