"""The reference networks have the papers' numbers of weights and multiply-accumulates."""

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress import models
from keras_compress.pruning.surgery import cut
from tests.pruning.surgery.common import half, outputs, randomize, samples, silence


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def layers_of(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize(
    "version, bypass, params",
    [
        ("1.0", None, 1_248_424),
        ("1.0", "simple", 1_248_424),
        ("1.1", None, 1_235_496),
    ],
)
def test_squeezenet_weights(version, bypass, params):
    model = models.SqueezeNet(version=version, bypass=bypass)
    assert model.count_params() == params
    assert len(layers_of(model, keras.layers.Add)) == (4 if bypass else 0)


def test_squeezenet_complex_bypass_goes_around_every_fire():
    model = models.SqueezeNet((64, 64, 3), bypass="complex")
    assert len(layers_of(model, keras.layers.Add)) == 8
    # 1x1 convolutions with biases around fire 2, 4, 6 and 8.
    added = sum(i * o + o for i, o in ((96, 128), (128, 256), (256, 384), (384, 512)))
    assert model.count_params() == 1_248_424 + added


@pytest.mark.parametrize("alpha, size, millions", [(1.0, 224, 569), (0.25, 128, 13.6)])
def test_mobilenet_is_that_of_keras_applications(alpha, size, millions):
    model = models.MobileNet((size, size, 3), alpha=alpha)
    macs = kc.profile.macs(model)
    np.testing.assert_allclose(macs, millions * 1e6, rtol=0.01)
    stock = keras.applications.MobileNet((size, size, 3), alpha, weights=None)
    assert (model.count_params(), macs) == (stock.count_params(), kc.profile.macs(stock))
    if alpha == 1.0:
        np.testing.assert_allclose(trainable(model), 4.2e6, rtol=0.01)
        return
    weights = [
        keras.random.uniform(w.shape, 0.5 if "variance" in w.path else -0.1, 1.0, seed=n)
        for n, w in enumerate(stock.weights)
    ]
    stock.set_weights(weights)
    # Its last layer is a 1x1 convolution, ours a dense one.
    model.set_weights(
        [keras.ops.reshape(a, b.shape) for a, b in zip(weights, model.weights, strict=True)]
    )
    x = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype("float32")
    pools = [
        keras.Model(m.input, layers_of(m, keras.layers.GlobalAveragePooling2D)[0].output)
        for m in (model, stock)
    ]
    ours, theirs = (keras.ops.convert_to_numpy(m(x)).ravel() for m in pools)
    assert theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups, millions", [(3, 137), (8, 137)])
def test_shufflenet_multiply_accumulates(groups, millions):
    model = models.ShuffleNet(groups=groups)
    # The paper leaves the last layer out, and rounds.
    last = model.get_layer("predictions").kernel.shape
    convolutions = kc.profile.macs(model) - int(np.prod(last))
    assert abs(convolutions / 1e6 - millions) <= 0.51
    if groups == 3:
        np.testing.assert_allclose(kc.profile.macs(model), 137e6, rtol=0.01)
    first, second = (model.get_layer(f"stage2_unit{n}_compress") for n in (1, 2))
    assert (first.groups, second.groups) == (1, groups)


@pytest.mark.parametrize("depth, millions", [(20, 0.27), (56, 0.85), (110, 1.7)])
def test_resnet_weights(depth, millions):
    model = models.ResNetCIFAR(depth=depth)
    assert model.name == f"resnet_{depth}"
    np.testing.assert_allclose(trainable(model), millions * 1e6, rtol=0.02)
    weighted = (keras.layers.Conv2D, keras.layers.Dense)
    assert len(layers_of(model, weighted)) == depth


@pytest.mark.parametrize(
    "arguments, millions",
    [
        ({"depth": 40}, 1.0),
        ({"depth": 100, "bottleneck": True, "compression": 0.5}, 0.8),
    ],
)
def test_densenet_weights(arguments, millions):
    model = models.DenseNetCIFAR((None, None, 3), **arguments)
    assert round(trainable(model) / 1e6, 1) == millions
    weighted = (keras.layers.Conv2D, keras.layers.Dense)
    assert len(layers_of(model, weighted)) == arguments["depth"]


def test_lenets():
    # 784 * 300 + 300 * 100 + 100 * 10 and biases; 20 5x5, 50 5x5x20, 800 * 500, 500 * 10.
    assert models.LeNet300100().count_params() == 235_200 + 30_000 + 1_000 + 410
    five = models.LeNet5()
    assert five.count_params() == 500 + 25_000 + 400_000 + 5_000 + 580
    assert kc.profile.macs(five) == 24**2 * 500 + 8**2 * 25_000 + 405_000


MAKERS = {
    "LeNet300100": lambda **kw: models.LeNet300100((9, 7, 2), **kw),
    "LeNet5": lambda **kw: models.LeNet5((9, 7, 2), padding="same", **kw),
    "SqueezeNet": lambda **kw: models.SqueezeNet((33, 20, 2), version="1.1", **kw),
    "MobileNet": lambda **kw: models.MobileNet((33, 20, 2), alpha=0.25, **kw),
    "ShuffleNet": lambda **kw: models.ShuffleNet((33, 20, 2), groups=4, scale=0.25, **kw),
    "ResNetCIFAR": lambda **kw: models.ResNetCIFAR((9, 7, 2), depth=8, **kw),
    "DenseNetCIFAR": lambda **kw: models.DenseNetCIFAR((9, 7, 2), depth=7, growth_rate=2, **kw),
}


@pytest.mark.parametrize("name", MAKERS)
def test_any_size_and_number_of_classes_in_stock_layers(name):
    model = MAKERS[name](classes=3, name="net")
    assert model.name == "net"
    allowed = (kc.layers.ChannelShuffle,)
    for layer in model.layers:
        assert type(layer).__module__.startswith("keras.src") or isinstance(layer, allowed)
    outputs = model.predict(np.ones((1, *model.input_shape[1:])), verbose=0)
    assert outputs.shape == (1, 3)
    np.testing.assert_allclose(outputs.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="surgery is numpy and the same everywhere"
)
@pytest.mark.parametrize("name", [name for name in MAKERS if "LeNet" not in name])
def test_silent_channels_of_every_network_go_without_a_trace(name):
    model = randomize(MAKERS[name](classes=3, classifier_activation=None))
    graph = kc.pruning.ChannelGraph(model)
    assert not graph.unknown
    kept = half(graph)
    silence(graph, kept)
    x = samples(model)
    expected = outputs(model, x)[0]
    small = cut(graph, kept)
    np.testing.assert_allclose(
        outputs(small, x)[0], expected, atol=1e-4 * max(1.0, np.abs(expected).max())
    )
    assert kc.profile.macs(small) < 0.75 * kc.profile.macs(model)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="ResNetCIFAR: `depth` must be 6n . 2.*The nearest is 20"):
        models.ResNetCIFAR(depth=18)
    with pytest.raises(ValueError, match="`depth` must be 3n . 4.*The nearest is 40"):
        models.DenseNetCIFAR(depth=41)
    with pytest.raises(ValueError, match="`version` must be one of '1.0', '1.1'"):
        models.SqueezeNet(version="2.0")
    with pytest.raises(ValueError, match="`bypass` must be one of None, 'simple', 'complex'"):
        models.SqueezeNet(bypass="easy")
    with pytest.raises(ValueError, match="`groups` must be one of 1, 2, 3, 4, 8; got groups=5"):
        models.ShuffleNet(groups=5)
    with pytest.raises(ValueError, match="`classes` must be a positive integer; got classes=0"):
        models.MobileNet((32, 32, 1), classes=0)
    with pytest.raises(ValueError, match="`alpha` must be a number"):
        models.MobileNet(alpha=0)
    with pytest.raises(ValueError, match=r"without the batch axis.*got input_shape=\(28, 28\)"):
        models.LeNet5((28, 28))
    with pytest.raises(ValueError, match="at least 16x16 .*Take padding='same'"):
        models.LeNet5((8, 8, 1))
    with pytest.raises(ValueError, match="reads every pixel"):
        models.LeNet300100((None, 28, 1))
