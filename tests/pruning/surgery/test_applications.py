"""Every family of `keras.applications`, at half of its channels.

`benchmarks/pruning_applications.py` goes through all architectures; here is one of each family.
"""

import inspect

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.pruning.surgery import ChannelGraph, cut
from tests.pruning.surgery.common import half, outputs, randomize, samples, silence

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="surgery is the same on every backend"
)

FAMILIES = [
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_the_channels(name):
    size = 75 if "Inception" in name or name == "Xception" else 32
    build = getattr(keras.applications, name)
    model = randomize(build(weights=None, input_shape=(size, size, 3), classes=10))
    graph = ChannelGraph(model)
    assert not graph.unknown
    kept = half(graph)
    silence(graph, kept)
    small = cut(graph, kept)
    x = samples(model)
    expected, given = outputs(model, x)[0], outputs(small, x)[0]
    assert given.shape == expected.shape
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert kc.profile.macs(small) < 0.6 * kc.profile.macs(model)
    keras.backend.clear_session()


@pytest.mark.parametrize("name", ["MobileNetV3Small", "MobileNetV2"])
def test_half_of_the_channels_exports(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=10)
    small = kc.pruning.prune_channels(model, "l1", 0.5)
    x = samples(model)
    lite = kc.export.to_tflite(small, calibration=x)
    np.testing.assert_allclose(lite.predict(x), outputs(small, x)[0], atol=1e-4)


def test_every_family_is_here():
    names = {n for n, _ in inspect.getmembers(keras.applications, inspect.isfunction)}
    prefixes = ("ConvNeXt", "DenseNet", "EfficientNetB", "EfficientNetV2", "Inception", "MobileNet")
    prefixes += ("NASNet", "ResNet", "VGG", "Xception")
    assert all(name.startswith(prefixes) for name in names)
