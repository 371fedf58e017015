"""WeightClip: the constraint of latent weights."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_compress.quantizers import WeightClip


def test_clips_and_leaves_the_inside_alone():
    w = np.array([-2, -0.5, 0.2, 0.5, 7], "float32")
    clipped = ops.convert_to_numpy(WeightClip(0.5)(ops.convert_to_tensor(w)))
    np.testing.assert_array_equal(clipped, np.array([-0.5, -0.5, 0.2, 0.5, 0.5], "float32"))


def test_round_trip_through_keras():
    config = keras.constraints.serialize(WeightClip(0.25))
    assert keras.constraints.get(config).limit == 0.25


@pytest.mark.parametrize("limit", [0, -1, "one", None, float("nan")])
def test_refuses_a_limit_that_is_not_positive(limit):
    with pytest.raises(ValueError, match="WeightClip: `limit`"):
        WeightClip(limit)
