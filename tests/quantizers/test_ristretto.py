"""Ristretto (Gysel et al.): fewest bits within a tolerance, without saturation."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.quantizers import FixedPoint, Minifloat, PowerOfTwo, Uniform, ristretto
from keras_compress.quantizers.ristretto_search import exponent_bits, fractional_length

KINDS = ("dynamic_fixed_point", "minifloat", "power_of_two")
TOLERANCE = {"dynamic_fixed_point": 0.05, "minifloat": 0.05, "power_of_two": 0.3}


def network():
    """A small network that is right on its data by definition: labels are its own outputs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            keras.layers.DepthwiseConv2D(3, name="depthwise"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="logits", bias_initializer="normal"),
        ]
    )
    x = 3 * np.random.default_rng(0).normal(size=(150, 6, 6, 1)).astype("float32")
    return model, (x, model.predict(x, verbose=0).argmax(-1))


@pytest.fixture(scope="module", params=KINDS)
def found(request):
    model, data = network()
    kind = request.param
    return kind, model, data, ristretto(model, data, TOLERANCE[kind], kind, verbose=0)


def accuracy(model, data):
    return np.mean(model.predict(data[0], verbose=0).argmax(-1) == data[1])


def with_formats(model, result, change):
    """The model, quantised from the rows anew, one width changed: `(name, side, quantizer)`."""
    name, side, quantizer = change
    rules = {}
    for row in result.rows:
        formats = {
            "kernel_quantizer": row.kernel_quantizer,
            "input_quantizer": row.input_quantizer,
        }
        if row.name == name:
            formats[side] = quantizer
        cls = type(result.model.get_layer(row.name))
        rules[row.name] = lambda layer, c=cls, f=formats: c.from_layer(layer, **f)
    return kc.convert(model, rules)


def one_lower(quantizer, largest):
    """The format one bit lower, or `None` at the lowest; formulas of the paper, written anew."""
    if isinstance(quantizer, PowerOfTwo):
        return None if quantizer.bits == 2 else PowerOfTwo(quantizer.bits - 1)
    if isinstance(quantizer, Minifloat):
        e, m = quantizer.exponent, quantizer.mantissa
        return None if m == 0 else Minifloat(e, m - 1)
    bits = quantizer.word - 1
    if bits < 2:
        return None
    step = 2.0 ** -(bits - np.ceil(np.log2(largest) + 1))
    while np.round(largest / step) > 2 ** (bits - 1) - 1:
        step *= 2
    return FixedPoint(bits, int(-np.log2(step)))


def test_ristretto_score_is_that_of_the_model_and_within_the_tolerance(found):
    kind, model, data, result = found
    assert result.float_score == 1.0 and result.metric == "accuracy"
    np.testing.assert_allclose(accuracy(result.model, data), result.score, atol=1 / 150)
    assert result.score >= 1 - TOLERANCE[kind] == result.limit


def test_ristretto_each_bit_width_one_lower_breaks_the_tolerance(found):
    kind, model, data, result = found
    lowered = 0
    for row in result.rows:
        for side, largest in (
            ("kernel_quantizer", row.largest_weight),
            ("input_quantizer", row.largest_input),
        ):
            lower = one_lower(getattr(row, side), largest)
            if lower is not None:
                lowered += 1
                other = with_formats(model, result, (row.name, side, lower))
                assert accuracy(other, data) < 1 - TOLERANCE[kind], (row.name, side)
    assert lowered


def test_ristretto_nothing_of_the_analysis_data_saturates(found):
    kind, model, (x, _), result = found
    for row in result.rows:
        layer = model.get_layer(row.name)
        inputs = (
            x if row.name == "conv" else keras.Model(model.inputs, layer.input).predict(x, 99, 0)
        )
        outputs = keras.Model(model.inputs, layer.output).predict(x, 99, 0)
        weights = ops.convert_to_numpy(layer.kernel)
        for values, largest, quantizer in (
            (weights, row.largest_weight, row.kernel_quantizer),
            (inputs, row.largest_input, row.input_quantizer),
        ):
            np.testing.assert_allclose(np.abs(values).max(), largest, rtol=1e-5)
            if isinstance(quantizer, FixedPoint):
                rounded = ops.convert_to_numpy(quantizer(values))
                assert np.abs(rounded - values).max() <= 2.0 ** -(quantizer.frac + 1) * 1.0001
            elif isinstance(quantizer, Minifloat):
                assert largest <= quantizer.largest
        np.testing.assert_allclose(np.abs(outputs).max(), row.largest_output, rtol=1e-5)


def test_ristretto_shadow_weights_are_the_float_ones_and_train(found):
    _, model, (x, y), result = found
    tuned = keras.models.clone_model(result.model)
    tuned.set_weights(result.model.get_weights())
    for row in result.rows:
        shadow = ops.convert_to_numpy(tuned.get_layer(row.name).kernel)
        np.testing.assert_array_equal(shadow, model.get_layer(row.name).kernel)
        coded = tuned.get_layer(row.name).reconstruct_kernel()
        assert len(np.unique(coded)) <= 2**row.weight_bits
    # Smaller steps than the grid has: codes would not move, the shadow weights do.
    tuned.compile(keras.optimizers.SGD(1e-6), "sparse_categorical_crossentropy")
    tuned.fit(x, y, verbose=0)
    before = ops.convert_to_numpy(model.get_layer("logits").kernel)
    moved = ops.convert_to_numpy(tuned.get_layer("logits").kernel) != before
    assert moved.any()


def test_ristretto_rows_print_as_a_table(found):
    *_, result = found
    lines = repr(result).splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["conv", "depthwise", "logits"]
    assert "<table" in result._repr_html_() and len(result) == 3
    assert result["conv"].weight_bits == result.rows[0].kernel_quantizer.bits


@pytest.mark.parametrize("largest", [0.3, 0.5, 0.9, 0.999, 1.0, 1.3, 7.9, 100.0])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_fractional_length_is_the_finest_without_saturation(largest, bits):
    def fits(frac):
        return np.round(np.float32(largest) * 2.0**frac) <= 2 ** (bits - 1) - 1

    frac = fractional_length(largest, bits)
    paper = bits - int(np.ceil(np.log2(largest) + 1))
    assert fits(frac) and frac in (paper, paper - 1)
    assert frac == paper or not fits(frac + 1)


def test_exponent_bits_grow_with_the_range():
    assert [exponent_bits(value) for value in (1.0, 256.0, 257.0, 7e4)] == [4, 4, 5, 6]


def test_ristretto_stochastic_rounding_is_for_training_only():
    model, data = network()
    result = ristretto(model, data, 0.1, rounding="stochastic", verbose=0)
    nearest = ristretto(model, data, 0.1, verbose=0)
    assert result.score == nearest.score
    quantizer = result["conv"].kernel_quantizer
    assert (
        quantizer.rounding == "stochastic" and result["conv"].input_quantizer.rounding == "nearest"
    )


def test_ristretto_measures_the_compiled_metric_and_an_error_may_grow_by_a_share():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, name="out")])
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    y = model.predict(x, verbose=0) + 0.1
    model.compile(loss="mse", metrics=["mae"])
    result = ristretto(model, (x, y), tolerance=0.05, verbose=0)
    assert result.metric == "mae"
    np.testing.assert_allclose(result.float_score, 0.1, rtol=1e-4)
    np.testing.assert_allclose(result.limit, 0.105, rtol=1e-4)
    error = np.abs(result.model.predict(x, verbose=0) - y).mean()
    np.testing.assert_allclose(result.score, error, rtol=1e-3)
    assert result.score <= result.limit


def test_ristretto_quantises_chosen_layers_and_leaves_the_model():
    model, data = network()
    before = [ops.convert_to_numpy(w) for w in model.weights]
    result = ristretto(model, data, 0.05, layers=["logits"], verbose=0)
    assert [row.name for row in result] == list(result.quantize) == ["logits"]
    assert type(result.model.get_layer("conv")) is keras.layers.Conv2D
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="export needs TensorFlow")
def test_ristretto_export_of_both_models():
    model, (x, y) = network()
    result = ristretto(model, (x, y), 0.05, verbose=0)
    lite = kc.export.to_tflite(model, quantize=result.quantize, calibration=x)
    for row in lite.table(runs=0).cells:
        if row[0] in result.quantize:
            mode = result.quantize[row[0]]
            assert row[1] == ("int4" if mode == "int4" else "int8")
    assert lite.agreement > 0.85
    stored = kc.export.to_tflite(result.model)
    for layer in stored.layers:
        assert layer.form.startswith("int")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"kind": "minifloats"}, "`kind` must be one of.*Did you mean 'minifloat'"),
        ({"tolerance": -0.1}, "`tolerance` must be a number"),
        ({"rounding": "up"}, "`rounding` must be one of"),
        ({"layers": "logit"}, "No layer matches 'logit'.*Did you mean 'logits'"),
        ({"layers": "flatten*"}, "no layer that has a Quant form"),
        ({"data": np.ones((3, 6, 6, 1))}, r"ristretto: `data` must be a pair \(x, y\)"),
        ({"data": (np.ones((0, 6, 6, 1)), np.ones(0))}, "at least one sample"),
        ({"data": (np.ones((3, 6, 6, 1)) * np.nan, np.ones(3))}, "not finite"),
        ({"data": (np.ones((3, 6, 6, 1)), np.ones((3, 2)))}, "accuracy takes outputs"),
    ],
)
def test_bad_arguments_say_what_to_do(changes, message):
    model, data = network()
    arguments = {"model": model, "data": data, "verbose": 0, **changes}
    with pytest.raises(ValueError, match=message):
        ristretto(**arguments)


def test_models_that_cannot_be_searched_are_refused():
    model, data = network()
    model.get_layer("depthwise").bias.assign([np.nan] * 4)
    with pytest.raises(ValueError, match="outputs of layer 'depthwise' are not finite"):
        ristretto(model, data, verbose=0)
    x = keras.Input((4,))
    both = keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)])
    with pytest.raises(ValueError, match="2 outputs"):
        ristretto(both, (np.ones((3, 4)), np.ones(3)), verbose=0)
    separable = keras.Sequential([keras.Input((5, 5, 2)), keras.layers.SeparableConv2D(2, 3)])
    with pytest.raises(ValueError, match="two kernels"):
        ristretto(separable, (np.ones((3, 5, 5, 2)), np.ones(3)), verbose=0)


def test_a_tolerance_that_no_width_holds_says_so():
    model, (x, y) = network()
    with pytest.raises(ValueError, match="the widest formats of kind='power_of_two' give accuracy"):
        ristretto(model, (x, y), 0.0, "power_of_two", verbose=0)


def test_ristretto_layers_keep_their_formats_in_files(tmp_path):
    model, (x, y) = network()
    result = ristretto(model, (x, y), 0.05, verbose=0)
    result.model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), result.model.predict(x, verbose=0))
    assert not isinstance(again.get_layer("conv").kernel_quantizer, Uniform)
