"""factorize(): whole models, objectives and budgets, against explicit computations in numpy."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_compress as kc
from keras_compress.decomposition import Budget, decompose, factorize

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 10, 10, 3)).astype("float32")
Y = RNG.integers(0, 5, size=40)


def small_net(activation="relu", strides=1, padding="same"):
    keras.utils.set_random_seed(1)
    options = {"padding": padding, "activation": activation}
    return keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            keras.layers.Conv2D(8, 3, name="a", bias_initializer="normal", **options),
            keras.layers.Conv2D(12, 3, strides, name="b", bias_initializer="normal", **options),
            keras.layers.Flatten(),
            keras.layers.Dense(5, name="logits"),
        ]
    )


def run(model, x=X):
    return ops.convert_to_numpy(model(x))


def outputs_of(model, name, x=X):
    """What a layer gives, in the model."""
    return run(keras.Model(model.inputs[0], model.get_layer(name).output), x)


def linear_outputs(layer, inputs):
    """A convolution's outputs before its activation, as rows."""
    outputs = ops.conv(
        inputs, layer.kernel, strides=layer.strides, padding=layer.padding
    ) + ops.convert_to_tensor(layer.bias)
    return ops.convert_to_numpy(outputs).reshape(-1, layer.filters).astype("float64")


ALL = {"images": 40, "positions": 100, "verbose": 0}


# Forms.


@pytest.mark.parametrize(
    "name,form,rank",
    [
        ("channel", "svd", 4),
        ("tucker1", "svd", 4),
        ("tucker2", "tucker", (4, 6)),
        ("spatial", "spatial", 5),
        ("cp", "cp", 4),
        ("separable_basis", "separable_basis", 2),
        ("spatial_channel", "spatial_channel", (6, 4)),
        ("monochromatic", "monochromatic", 4),
        ("bicluster", "bicluster", (2, 2, 2, 2)),
    ],
)
def test_chosen_layers_have_the_decomposition_of_their_kernels(name, form, rank):
    model = small_net()
    before = run(model)
    result = factorize(model, name, rank, layers="b", verbose=0)
    layer = result.model.get_layer("b")
    assert isinstance(layer, kc.layers.FactorizedConv2D) and layer.form == form
    kernel = ops.convert_to_numpy(model.get_layer("b").kernel)
    expected = decompose(kernel, form, rank)
    np.testing.assert_allclose(layer.reconstruct_kernel(), expected.reconstruct(), atol=1e-5)
    # The model with that dense kernel, by Keras alone.
    dense = keras.models.clone_model(model)
    dense.set_weights(model.get_weights())
    dense.get_layer("b").kernel.assign(expected.reconstruct())
    np.testing.assert_allclose(run(result.model), run(dense), atol=1e-4)
    np.testing.assert_array_equal(run(model), before)
    (row,) = result.layers
    assert row.error == pytest.approx(expected.error(kernel), rel=1e-4)
    assert row.macs_before == 100 * 9 * 8 * 12 and row.params_after == expected.params()
    assert result.macs_after == kc.profile.macs(result.model)


def test_tensor_trains_are_those_of_the_layers():
    model = small_net()
    result = factorize(model, "tt", 3, layers=["b", "logits"], verbose=0)
    names = [type(layer).__name__ for layer in result.model.layers]
    assert names == ["Conv2D", "TTConv2D", "Flatten", "TTDense"]
    layer = kc.layers.TTDense.from_layer(model.get_layer("logits"), rank=3)
    np.testing.assert_allclose(
        result.model.get_layer("logits").reconstruct_kernel(), layer.reconstruct_kernel()
    )


def test_layers_that_do_not_become_cheaper_are_left_and_said_so():
    result = factorize(small_net(), "channel", 8, verbose=0)
    # b: 72 x 12; at rank 8 72 x 8 + 8 x 12 is less. The others are smaller than rank 8 allows.
    forms = {row.layer: row.form for row in result.layers}
    assert forms == {"a": None, "b": "svd", "logits": None}
    assert "as it was" in str(result.table())


def test_kim_evbmf_is_the_default_rank():
    model = small_net()
    kernel = 0.01 * RNG.normal(size=(3, 3, 8, 12))
    kernel += np.einsum("ijsr,rt->ijst", RNG.normal(size=(3, 3, 8, 3)), RNG.normal(size=(3, 12)))
    model.get_layer("b").kernel.assign(kernel)
    (row,) = factorize(model, "channel", layers="b", verbose=0).layers
    assert row.rank == (3,)


# Denton: covariance and gradient.


@pytest.mark.parametrize("rank", range(1, 13))
def test_denton_covariance_fit_answers_no_worse_than_svd_at_every_rank(rank):
    model = small_net()
    layer, inputs = model.get_layer("b"), outputs_of(model, "a")
    whole = linear_outputs(layer, inputs)
    squared = {}
    for objective in ("weights", "covariance"):
        result = factorize(model, "svd", rank, "b", objective, X, **ALL)
        stock = result.model.get_layer("b").expand()
        squared[objective] = np.sum((whole - linear_outputs(stock, inputs)) ** 2)
    least = max(squared["weights"], 1e-6)
    assert squared["covariance"] <= least * (1 + 1e-4)
    # The closed form of the reference: SVD of the kernel times the root of the moment.
    no_bias = whole - ops.convert_to_numpy(layer.bias)
    dropped = np.linalg.svd(no_bias, compute_uv=False)[rank:]
    assert squared["covariance"] == pytest.approx(np.sum(dropped**2), rel=1e-3, abs=1e-5)
    assert result.layers[0].error ** 2 * np.sum(no_bias**2) == pytest.approx(
        np.sum(dropped**2), rel=1e-3, abs=1e-5
    )


def gradient_squares(model, name):
    """Sums of squared gradients, sample by sample, by a difference quotient of each weight."""
    layer = model.get_layer(name)
    kernel = ops.convert_to_numpy(layer.kernel).astype("float64")
    inputs = outputs_of(model, "b").reshape(len(X), -1).astype("float64")
    logits = inputs @ kernel + ops.convert_to_numpy(layer.bias)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    slopes = odds / odds.sum(1, keepdims=True) - np.eye(5)[Y]
    return np.einsum("ni,nj->ij", inputs**2, slopes**2), kernel


def test_denton_gradient_fit_weighs_each_weight_by_its_gradients():
    model = small_net()
    squares, kernel = gradient_squares(model, "logits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weighted = {}
    for objective in ("weights", "gradient"):
        result = factorize(model, "svd", 2, "logits", objective, (X, Y), loss=loss, verbose=0)
        found = result.model.get_layer("logits").reconstruct_kernel()
        weighted[objective] = np.sum(squares * (kernel - found) ** 2)
    assert weighted["gradient"] < 0.9 * weighted["weights"]
    share = weighted["gradient"] / np.sum(squares * kernel**2)
    assert result.layers[0].error == pytest.approx(np.sqrt(share), rel=1e-3)
    # No worse than the closed form for the nearest separable weights.
    u, _, vt = np.linalg.svd(np.sqrt(squares), full_matrices=False)
    # Weights of dead inputs are worth nothing.
    rows, columns = np.maximum(np.abs(u[:, :1]), 1e-9), np.maximum(np.abs(vt[:1]), 1e-9)
    p, s, qt = np.linalg.svd(rows * kernel * columns, full_matrices=False)
    separable = ((p[:, :2] * s[:2]) @ qt[:2]) / rows / columns
    assert weighted["gradient"] <= np.sum(squares * (kernel - separable) ** 2) * (1 + 1e-6)


# Zhang 2015, Jaderberg: responses.


@pytest.mark.parametrize("rank", [2, 5, 9])
def test_zhang_linear_response_is_pca_of_the_responses(rank):
    model = small_net(activation="linear")
    inputs = outputs_of(model, "a")
    responses = linear_outputs(model.get_layer("b"), inputs)
    result = factorize(model, "channel", rank, "b", "response", X, **ALL)
    found = linear_outputs(result.model.get_layer("b").expand(), inputs)
    mean = responses.mean(0)
    _, _, vt = np.linalg.svd(responses - mean, full_matrices=False)
    expected = (responses - mean) @ vt[:rank].T @ vt[:rank] + mean
    np.testing.assert_allclose(found, expected, atol=1e-3)
    kernel_svd = factorize(model, "svd", rank, "b", verbose=0).model.get_layer("b").expand()
    plain = np.sum((linear_outputs(kernel_svd, inputs) - responses) ** 2)
    assert np.sum((found - responses) ** 2) <= plain


@pytest.mark.parametrize("rank", [2, 5])
def test_zhang_relu_response_is_below_the_linear_one(rank):
    model, linear = small_net(), small_net(activation="linear")
    linear.set_weights(model.get_weights())
    first = outputs_of(model, "a")
    wanted = np.maximum(linear_outputs(model.get_layer("b"), first), 0)
    result = factorize(model, "channel", rank, "b", "response", X, **ALL)
    found = np.maximum(linear_outputs(result.model.get_layer("b").expand(), first), 0)
    responses = linear_outputs(model.get_layer("b"), first)
    mean = responses.mean(0)
    _, _, vt = np.linalg.svd(responses - mean, full_matrices=False)
    pca = np.maximum((responses - mean) @ vt[:rank].T @ vt[:rank] + mean, 0)
    squared = np.sum((found - wanted) ** 2)
    assert squared < 0.98 * np.sum((pca - wanted) ** 2)
    share = squared / np.sum((wanted - wanted.mean(0)) ** 2)
    assert result.layers[0].error == pytest.approx(np.sqrt(share), rel=1e-3)


@pytest.mark.parametrize("strides,padding", [(1, "same"), (2, "valid")])
@pytest.mark.parametrize("form,rank", [("spatial", 5), ("tucker", (4, 5)), ("cp", 9)])
def test_jaderberg_data_reconstruction_is_below_filter_reconstruction(form, rank, strides, padding):
    model = small_net("linear", strides, padding)
    inputs = outputs_of(model, "a")
    responses = linear_outputs(model.get_layer("b"), inputs)
    squared = {}
    for objective in ("weights", "covariance", "response"):
        result = factorize(model, form, rank, "b", objective, X, **ALL)
        found = linear_outputs(result.model.get_layer("b").expand(), inputs)
        squared[objective] = np.sum((found - responses) ** 2)
    assert squared["response"] < 0.95 * squared["weights"]
    assert squared["covariance"] < 0.95 * squared["weights"]


# Zhang 2016: from the approximated layers, and the ranks.


def test_zhang_asymmetric_fit_makes_up_for_the_layers_before():
    model = small_net(activation="linear")
    squared = {}
    wanted = outputs_of(model, "b")
    for objective in ("response", "response_asym"):
        result = factorize(model, "channel", 5, ["a", "b"], objective, X, **ALL)
        squared[objective] = np.sum((outputs_of(result.model, "b") - wanted) ** 2)
    assert squared["response_asym"] < 0.99 * squared["response"]
    # Of all maps of rank 5 from what the second layer's filters give on the approximated first.
    inputs = linear_outputs(model.get_layer("b"), outputs_of(result.model, "a"))
    targets = wanted.reshape(-1, 12).astype("float64")
    whole = np.linalg.lstsq(np.hstack([inputs, np.ones((len(inputs), 1))]), targets, rcond=None)[0]
    fitted = np.hstack([inputs, np.ones((len(inputs), 1))]) @ whole
    dropped = np.linalg.svd(fitted - fitted.mean(0), compute_uv=False)[5:]
    least = np.sum((targets - fitted) ** 2) + np.sum(dropped**2)
    assert squared["response_asym"] == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("objective", ["response", "response_asym"])
def test_zhang_full_rank_has_no_error(objective):
    model = small_net()
    result = factorize(model, "channel", 12, "b", objective, X, **ALL)
    np.testing.assert_allclose(run(result.model), run(model), atol=1e-3)
    assert result.layers[0].error < 1e-3


@pytest.mark.parametrize("order", list(itertools.product([True, False], [True, False])))
def test_responses_are_those_behind_a_batch_normalization(order):
    use_bias, relu = order
    keras.utils.set_random_seed(2)
    tail = [keras.layers.ReLU()] if relu else []
    model = keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            keras.layers.Conv2D(12, 3, use_bias=use_bias, name="b"),
            keras.layers.BatchNormalization(name="norm"),
            *tail,
        ]
    )
    shapes = [w.shape for w in model.get_layer("norm").weights]
    gamma, beta, mean = (RNG.normal(size=s) for s in shapes[:3])
    model.get_layer("norm").set_weights([gamma, beta, mean, RNG.gamma(2.0, size=12)])
    result = factorize(model, "channel", 4, "b", "response", X, images=40, positions=64, verbose=0)
    wanted = run(model).reshape(-1, 12).astype("float64")
    found = run(result.model).reshape(-1, 12)
    squared = np.sum((found - wanted) ** 2)
    normed = outputs_of(model, "norm").reshape(-1, 12).astype("float64")
    mean = normed.mean(0)
    _, _, vt = np.linalg.svd(normed - mean, full_matrices=False)
    pca = (normed - mean) @ vt[:4].T @ vt[:4] + mean
    least = np.sum(((np.maximum(pca, 0) if relu else pca) - wanted) ** 2)
    if relu:
        assert squared < least
    else:
        assert squared == pytest.approx(least, rel=1e-3)
    share = squared / np.sum((wanted - wanted.mean(0)) ** 2)
    assert result.layers[0].error == pytest.approx(np.sqrt(share), rel=1e-3)


@pytest.mark.parametrize("what", ["macs", "params", "bytes"])
@pytest.mark.parametrize("form", ["channel", "tucker", "spatial", "auto"])
def test_zhang_greedy_choice_meets_the_budget(form, what):
    model = small_net()
    # Most weights are in the dense layer, which only some forms can hold.
    share = 0.6 if what == "macs" or form in ("channel", "auto") else 0.95
    result = factorize(model, form, Budget(**{what: share}), verbose=0)
    if what == "macs":
        assert kc.profile.macs(result.model) <= share * kc.profile.macs(model)
    else:
        assert result.model.count_params() <= share * model.count_params()


def test_zhang_energies_of_a_budget_are_those_of_the_responses():
    model = small_net()
    # Responses of b have rank 2 on these data, its kernel has not.
    model.get_layer("a").kernel.assign(np.zeros((3, 3, 3, 8)))
    flat = np.zeros((3, 3, 3, 8))
    flat[1, 1, 0, 0] = 1.0
    model.get_layer("a").kernel.assign(flat)
    kernel = RNG.normal(size=(3, 3, 8, 12)) * 0.1
    kernel[:, :, 0] = np.einsum("ijr,rt->ijt", RNG.normal(size=(3, 3, 2)), RNG.normal(size=(2, 12)))
    model.get_layer("b").kernel.assign(kernel)
    options = {"objective": "covariance", "data": X, **ALL}
    result = factorize(model, "channel", 0.999, "b", **options)
    responses = linear_outputs(model.get_layer("b"), outputs_of(model, "a"))
    responses -= ops.convert_to_numpy(model.get_layer("b").bias)
    squares = np.linalg.svd(responses, compute_uv=False) ** 2
    expected = 1 + int(np.argmax(np.cumsum(squares) >= 0.999 * squares.sum()))
    assert result.layers[0].rank == (expected,)
    assert factorize(model, "channel", 0.999, "b", verbose=0).layers[0].rank > (expected,)


def test_auto_takes_the_form_of_least_error_within_the_layer_s_share():
    model = small_net()
    # Of rank 3 between a vertical and a horizontal filter.
    kernel = np.einsum("isk,jkt->ijst", RNG.normal(size=(3, 8, 3)), RNG.normal(size=(3, 3, 12)))
    model.get_layer("b").kernel.assign(kernel)
    result = factorize(model, "auto", Budget(macs=0.5), layers="b", verbose=0)
    (row,) = result.layers
    assert row.form == "spatial" and row.error < 1e-5
    channel = factorize(model, "channel", Budget(macs=0.5), layers="b", verbose=0).layers[0]
    assert row.macs_after <= channel.macs_after


def test_layers_called_twice_and_nested_models_are_factorized_once():
    keras.utils.set_random_seed(3)
    shared = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="shared")
    inner = keras.Sequential([keras.Input((10, 10, 8)), shared], name="inner")
    inputs = keras.Input((10, 10, 8))
    model = keras.Model(inputs, shared(inner(inputs)))
    x = RNG.normal(size=(20, 10, 10, 8)).astype("float32")
    result = factorize(model, "channel", 3, objective="response_asym", data=x, images=20, verbose=0)
    (row,) = result.layers
    assert row.macs_before == 2 * 100 * 9 * 8 * 8 == kc.profile.macs(model)
    assert row.macs_after == kc.profile.macs(result.model) == 2 * 100 * (72 * 3 + 3 * 8)


def test_open_shapes_are_factorized_and_their_macs_unknown():
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(16, 3, name="a")])
    result = factorize(model, "channel", 2, verbose=0)
    assert result.macs_before is None and result.layers[0].form == "svd"
    with pytest.raises(ValueError, match="open shape"):
        factorize(model, "channel", Budget(macs=0.5), verbose=0)


def test_the_result_trains_saves_and_converts(tmp_path):
    model = small_net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    result = factorize(model, "channel", Budget(macs=0.5), verbose=0)
    assert result.model.compiled
    result.model.fit(X, Y, verbose=0)
    result.model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(run(loaded), run(result.model), atol=1e-6)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"form": "chanel"}, "Did you mean 'channel'"),
        ({"form": ()}, "`form` is empty"),
        ({"form": "auto", "rank": 4}, "compared at equal cost: give rank=Budget"),
        ({"form": "tt", "rank": Budget(macs=0.5)}, "Give its ranks as integers"),
        ({"form": "tt", "objective": "response"}, "form='tt' is fitted to the kernels"),
        ({"rank": Budget(energy=0.5)}, "one of macs=, params= or bytes="),
        ({"rank": Budget(macs=0.01)}, r"Budget\(macs=0.01\) cannot be met: .* 0\.\d+ of the macs"),
        ({"rank": 99, "layers": "b"}, "factorize: layer 'b': `rank` is larger.*largest .* is 12"),
        ({"rank": (2, 2)}, "`rank` must be an integer here"),
        ({"objective": "respons"}, "Did you mean 'response'"),
        ({"objective": "response"}, "factorize: this needs data"),
        ({"objective": "gradient", "data": X}, r"needs targets; give data=\(x, y\)"),
        ({"objective": "gradient", "data": (X, Y)}, "is not compiled with one loss"),
        ({"layers": "c"}, "No layer matches 'c'"),
        ({"form": "spatial", "rank": 2, "layers": "logits"}, "'logits' .*cannot hold it"),
        ({"layers": "flatten*"}, "cannot hold it"),
        ({"rank": 12}, "no layer of model .* becomes cheaper"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        factorize(small_net(), **{"rank": 4, "verbose": 0, **arguments})


def test_subclassed_models_are_refused():
    with pytest.raises(ValueError, match="factorize takes a keras.Model"):
        factorize(keras.layers.Dense(2), "svd", 1)
