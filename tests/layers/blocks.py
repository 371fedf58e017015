"""The blocks that tests run over, and hand-written networks to compare with."""

import keras
import numpy as np

import keras_compress as kc

RNG = np.random.default_rng(0)


def randomized(layer, shape):
    """Builds a layer for a sample's shape and gives every weight random values."""
    if not layer.built:
        layer.build((None, *shape))
    for weight in layer.weights:
        low = 0.5 if "variance" in weight.path else -1.0
        weight.assign(RNG.uniform(low, 1.0, size=weight.shape))
    return layer


def samples(shape, count=4):
    return RNG.normal(size=(count, *shape)).astype("float32")


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


IMAGE = (7, 8, 12)
#: name -> (make a block, shape of a sample)
CASES = {
    "fire": (lambda **kw: kc.layers.FireModule(3, 4, 5, **kw), IMAGE),
    "fire-strided": (
        lambda **kw: kc.layers.FireModule(3, 4, 5, strides=2, padding="valid", **kw),
        IMAGE,
    ),
    "separable": (
        lambda **kw: kc.layers.DepthwiseSeparableConv2D(6, 3, 2, depth_multiplier=2, **kw),
        IMAGE,
    ),
    "shuffle": (lambda **kw: kc.layers.ShuffleUnit(12, 2, bottleneck=4, **kw), IMAGE),
    "shuffle-strided": (
        lambda **kw: kc.layers.ShuffleUnit(20, 2, 2, bottleneck=4, group_first=False, **kw),
        IMAGE,
    ),
    "residual-pad": (lambda **kw: kc.layers.ResidualBlock(16, 2, **kw), IMAGE),
    "residual-projection": (lambda **kw: kc.layers.ResidualBlock(8, 2, "projection", **kw), IMAGE),
    "dense": (lambda **kw: kc.layers.DenseBlock(2, 3, bottleneck=True, **kw), IMAGE),
    "lccl-1x1": (
        lambda **kw: kc.layers.LCCLConv2D(6, (3, 2), dilation_rate=2, groups=3, **kw),
        IMAGE,
    ),
    "lccl-shared": (
        lambda **kw: kc.layers.LCCLConv2D(5, 3, 2, "same", activation="relu", kind="shared", **kw),
        IMAGE,
    ),
    "highway-dense": (lambda **kw: kc.layers.HighwayDense(**kw), (5, 6)),
    "highway-conv": (lambda **kw: kc.layers.HighwayConv2D(**kw), IMAGE),
}


def make(name, **kwargs):
    """A randomized block of a case, and samples for it."""
    build, shape = CASES[name]
    return randomized(build(name="block", **kwargs), shape), samples(shape)
