"""FactorizedConv2D: each chain of convolutions against Conv2D with the explicit kernel."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.decomposition import decompose
from keras_compress.layers import FactorizedConv2D

RNG = np.random.default_rng(0)
RANKS = {
    "svd": 5,
    "spatial": 7,
    "tucker": (3, 4),
    "cp": 6,
    "separable_basis": 2,
    "spatial_channel": (7, 4),
    "monochromatic": 3,
    "bicluster": (2, 3, 2, 1),
}


def run(layer, inputs):
    return ops.convert_to_numpy(layer(np.asarray(inputs, "float32")))


def explicit_kernel(form, factors):
    """The kernel by its formula, from the weights as they are."""
    factors = [ops.convert_to_numpy(f) for f in factors]
    if form == "svd":
        return np.einsum("ijsr,rt->ijst", factors[0], factors[1][0, 0])
    if form == "spatial":
        return np.einsum("isk,jkt->ijst", factors[0][:, 0], factors[1][0])
    if form == "tucker":
        return np.einsum("sp,ijpq,qt->ijst", factors[0][0, 0], factors[1], factors[2][0, 0])
    if form == "cp":
        c, a, b, d = factors[0][0, 0], factors[1][:, 0, :, 0], factors[2][0, :, :, 0], factors[3]
        return np.einsum("ir,jr,sr,rt->ijst", a, b, c, d[0, 0])
    if form == "separable_basis":
        v, h, a = factors[0][:, 0], factors[1][0, :, :, 0], factors[2][0, 0]
        terms = v.shape[-1]
        kernel = np.zeros((len(v), len(h), v.shape[1], a.shape[1]))
        for m in range(len(a)):
            outer = np.outer(v[:, m // terms, m % terms], h[:, m])
            kernel[:, :, m // terms] += outer[:, :, None] * a[m]
        return kernel
    if form == "spatial_channel":
        v, h, q = factors[0][:, 0], factors[1][0], factors[2][0, 0]
        return np.einsum("isk,jkr,rt->ijst", v, h, q)
    if form == "monochromatic":
        colors, spatial, order = factors
        each = spatial.shape[3]
        pairs = [divmod(place, each) for place in order]
        filters = [spatial[:, :, c, m, None] * colors[0, 0, :, c] for c, m in pairs]
        return np.stack(filters, -1)
    return explicit_bicluster(*factors)


def explicit_bicluster(rows, first, core, middle, last, columns, parts=3):
    """Each entry by following its channel through the grouped convolutions."""
    groups, width = len(rows) // first.shape[2], first.shape[2]
    r1 = core.shape[2]
    r2 = core.shape[3] // (groups * parts)
    each = last.shape[3] // parts
    kernel = np.zeros((*core.shape[:2], len(rows), len(columns)))
    for place, s in enumerate(rows):
        g = place // width
        for t, output in enumerate(columns):
            # Inputs of the last convolution's group that this output reads.
            for k in range(groups * r2):
                q = middle[output // each * groups * r2 + k]
                pair = q // r2
                if pair // parts != g:
                    continue
                for p in range(r1):
                    into = first[0, 0, place % width, pair * r1 + p]
                    kernel[:, :, s, t] += into * core[:, :, p, q] * last[0, 0, k, output]
    return kernel


def trained_conv(shape=(3, 3, 4, 6), **arguments):
    conv = keras.layers.Conv2D(shape[3], shape[:2], **arguments)
    conv.build((None, None, None, shape[2]))
    rng = np.random.default_rng(1)
    conv.kernel.assign(rng.normal(size=shape))
    conv.bias.assign(rng.normal(size=shape[3]))
    return conv


@pytest.mark.parametrize(
    "padding,data_format",
    [("same", "channels_last"), ("valid", "channels_last"), ("same", "channels_first")],
)
@pytest.mark.parametrize(
    "steps",
    [{}, {"strides": 2}, {"strides": (1, 3)}, {"dilation_rate": 2}, {"dilation_rate": (2, 1)}],
    ids=["plain", "strided", "strided-unevenly", "dilated", "dilated-unevenly"],
)
@pytest.mark.parametrize("form", RANKS)
def test_chain_equals_conv2d_with_the_reconstructed_kernel(form, steps, padding, data_format):
    shape = (2, 9, 10, 4) if data_format == "channels_last" else (2, 4, 9, 10)
    arguments = {"padding": padding, "data_format": data_format, **steps}
    layer = FactorizedConv2D(6, (3, 4), form=form, rank=RANKS[form], activation="tanh", **arguments)
    layer.build(shape)
    layer.bias.assign(RNG.normal(size=6))
    conv = keras.layers.Conv2D(6, (3, 4), activation="tanh", **arguments)
    conv.build(shape)
    kernel = explicit_kernel(form, layer.factors)
    conv.set_weights([kernel, layer.bias])
    x = RNG.normal(size=shape)
    np.testing.assert_allclose(run(layer, x), run(conv, x), atol=1e-4)
    np.testing.assert_allclose(layer.reconstruct_kernel(), kernel, atol=1e-6)


@pytest.mark.parametrize("padding,output", [("same", (5, 5)), ("valid", (4, 4))])
def test_jaderberg_stride_is_split_between_the_two_convolutions(padding, output):
    layer = FactorizedConv2D(6, 3, strides=2, padding=padding, form="spatial", rank=7)
    layer.build((None, 9, 10, 4))
    # The vertical step has halved the rows only.
    expected = output[0] * 10 * 3 * 4 * 7 + output[0] * output[1] * 3 * 7 * 6
    assert layer.macs((None, 9, 10, 4)) == expected


@pytest.mark.parametrize(
    "form,rank,params",
    [
        ("svd", 5, 5 * (9 * 8 + 12)),
        ("spatial", 5, 5 * 3 * (8 + 12)),
        ("tucker", (4, 6), 8 * 4 + 9 * 4 * 6 + 6 * 12),
        ("cp", 5, 5 * (2 * 3 + 8 + 12)),
        ("spatial_channel", (6, 4), 3 * 6 * (8 + 4) + 4 * 12),
        ("separable_basis", 2, 8 * 2 * 2 * 3 + 8 * 2 * 12),
    ],
)
def test_params_and_macs_of_each_form(form, rank, params):
    layer = FactorizedConv2D(12, 3, padding="same", use_bias=False, form=form, rank=rank)
    layer.build((None, 7, 5, 8))
    assert layer.count_params() == params
    assert layer.storage_bits() == 32 * params
    assert layer.macs((None, 7, 5, 8)) == 7 * 5 * params


@pytest.mark.parametrize(
    "form,rank,terms", [("monochromatic", 3, 0), ("bicluster", (2, 3, 2, 1), 6)]
)
def test_orders_of_channels_are_weights_that_cost_no_macs(form, rank, terms):
    layer = FactorizedConv2D(12, 3, padding="same", use_bias=False, form=form, rank=rank)
    layer.build((None, 7, 5, 8))
    orders = [w for w in layer.weights if "int" in w.dtype]
    assert sum(w.shape[0] for w in orders) == 12 + (8 + terms if terms else 0)
    assert not any(w.trainable for w in orders)
    params = layer.count_params() - sum(w.shape[0] for w in orders)
    assert layer.macs((None, 7, 5, 8)) == 7 * 5 * params
    assert layer.storage_bits() == 32 * layer.count_params()


@pytest.mark.parametrize("form", ["svd", "spatial", "tucker", "cp", "separable_basis"])
@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (1, 1, 6, 4), (3, 3, 1, 8), (1, 3, 8, 2)])
def test_from_layer_starts_from_the_decomposition(form, shape):
    conv = trained_conv(shape, padding="same", strides=2, activation="relu")
    rank = 2 if min(shape[2:]) > 1 and (form != "separable_basis" or shape[0] > 1) else 1
    layer = FactorizedConv2D.from_layer(conv, form=form, rank=rank)
    kernel = ops.convert_to_numpy(conv.kernel)
    expected = decompose(kernel, form, layer.rank)
    np.testing.assert_allclose(layer.reconstruct_kernel(), expected.reconstruct(), atol=1e-5)
    assert layer.strides == (2, 2) and layer.padding == "same"
    x = RNG.normal(size=(2, 6, 7, shape[2]))
    np.testing.assert_allclose(run(layer, x), run(layer.expand(), x), atol=1e-4)


def test_jaderberg_scheme_2_at_its_largest_rank_is_the_convolution():
    conv = trained_conv((3, 3, 4, 6))
    layer = FactorizedConv2D.from_layer(conv, form="spatial", rank=min(3 * 4, 3 * 6))
    x = RNG.normal(size=(2, 7, 8, 4))
    np.testing.assert_allclose(run(layer, x), run(conv, x), atol=1e-4)


def test_lebedev_starts_with_terms_of_equal_norm():
    layer = FactorizedConv2D.from_layer(trained_conv(), form="cp", rank=4)
    c, a, b, d = (ops.convert_to_numpy(f).squeeze() for f in layer.factors)
    norms = [np.linalg.norm(f, axis=0) for f in (a, b, c, d.T)]
    for norm in norms[1:]:
        np.testing.assert_allclose(norm, norms[0], rtol=1e-4)


def test_kim_ranks_by_evbmf_are_the_default():
    conv = trained_conv((3, 3, 24, 32))
    u, v = RNG.normal(size=(24, 4)), RNG.normal(size=(32, 7))
    signal = np.einsum("ijpq,sp,tq->ijst", RNG.normal(size=(3, 3, 4, 7)), u, v)
    conv.kernel.assign(signal + 0.3 * RNG.normal(size=signal.shape))
    layer = FactorizedConv2D.from_layer(conv)
    assert layer.form == "tucker"
    assert layer.rank == layer.get_config()["rank"] == (4, 7)


@pytest.mark.parametrize("form,rank", [("svd", 16), ("spatial", 32), ("tucker", 16), ("cp", 64)])
def test_kernel_initializer_is_the_spread_of_the_product(form, rank):
    keras.utils.set_random_seed(2)
    initializer = keras.initializers.RandomNormal(stddev=0.05)
    layer = FactorizedConv2D(64, 3, form=form, rank=rank, kernel_initializer=initializer)
    layer.build((None, 8, 8, 48))
    # Nine spatial positions of CP share each term, so that one draw has a wide spread.
    tolerance = 0.5 if form == "cp" else 0.2
    assert np.std(layer.reconstruct_kernel()) == pytest.approx(0.05, rel=tolerance)


def test_one_integer_for_two_ranks_is_cut_to_what_each_can_use_at_build():
    layer = FactorizedConv2D(8, 3, rank=np.int64(16))
    assert layer.rank == 16 and type(layer.get_config()["rank"]) is int
    layer.build((None, 9, 9, 32))
    assert layer.rank == (16, 8)


@pytest.mark.parametrize("kernel_size,channels,rank", [(3, 1, (1, 4)), (1, 6, (4, 4))])
def test_one_input_channel_and_a_1x1_kernel(kernel_size, channels, rank):
    layer = FactorizedConv2D(8, kernel_size, rank=4)
    layer.build((None, 9, 9, channels))
    assert layer.rank == rank
    x = RNG.normal(size=(2, 5, 5, channels))
    np.testing.assert_allclose(run(layer, x), run(layer.expand(), x), atol=1e-5)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"form": "tuker"}, "Did you mean 'tucker'"),
        ({"rank": 73}, "the largest useful rank is 72"),
        ({"rank": (2, 9)}, r"rank\[1\]=9 is larger than the kernel allows \(8\)"),
        ({"rank": (2, 2, 2)}, "an integer or 2 integers"),
        ({"form": "svd", "rank": 9}, "the largest useful rank is 8"),
        ({"form": "spatial", "rank": 25}, "the largest useful rank is 24"),
        ({"form": "cp", "rank": 73}, "the largest useful rank is 72"),
        ({"rank": "evbmf"}, r"Use from_layer\(\)"),
        ({"rank": 0.5}, r"Use from_layer\(\)"),
        ({"form": "monochromatic", "rank": 3}, "rank=3 must divide the 8 filters"),
        ({"form": "bicluster", "rank": (2, 3, 1, 1)}, r"rank\[1\]=3 the 8 filters"),
        ({"form": "separable_basis", "rank": 10}, "the largest useful rank is 9"),
        ({"groups": 2}, "`groups` must be 1; got groups=2"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=f"FactorizedConv2D: .*{message}"):
        FactorizedConv2D(**{"filters": 8, "kernel_size": 3, "rank": 2, **arguments})


def test_ranks_above_the_input_channels_are_refused_at_build():
    with pytest.raises(ValueError, match=r"rank\[0\]=5 is larger than the kernel allows \(4\)"):
        FactorizedConv2D(8, 3, rank=(5, 4)).build((None, 9, 9, 4))


def test_grouped_convolutions_are_refused_by_from_layer():
    conv = keras.layers.Conv2D(8, 3, groups=2)
    conv.build((None, 9, 9, 4))
    with pytest.raises(ValueError, match="FactorizedConv2D: `groups` must be 1; got groups=2"):
        FactorizedConv2D.from_layer(conv, rank=2)


@pytest.mark.parametrize("form", RANKS)
def test_factors_are_taken_as_they_are(form):
    conv = trained_conv()
    factors = decompose(ops.convert_to_numpy(conv.kernel), form, RANKS[form])
    layer = FactorizedConv2D.from_layer(conv, factors=factors)
    assert layer.form == form
    for weight, array in zip(layer.factors, factors.arrays, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(weight), array, rtol=1e-6)


def test_factors_of_another_kernel_are_refused():
    factors = decompose(RNG.normal(size=(3, 3, 4, 5)), "svd", 2)
    with pytest.raises(ValueError, match=r"shape \(3, 3, 4, 5\); the layer's is \(3, 3, 4, 6\)"):
        FactorizedConv2D.from_layer(trained_conv(), factors=factors)
    with pytest.raises(ValueError, match="must be what kc.decomposition.decompose gives"):
        FactorizedConv2D.from_layer(trained_conv(), factors=3)
