"""`Magnitude`: weights by their size."""

import keras
import numpy as np

from keras_compress.pruning.criteria.weight_criterion import WeightCriterion


class Magnitude(WeightCriterion):
    """Scores weights by their absolute values.

    Args:
        normalize: See `Criterion`.

    Reference:
        S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient
        Neural Networks", 2015.

    Example:

    >>> import keras
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")])
    >>> _ = model.layers[0].kernel.assign([[1.0, -2.0], [0.5, 0.0], [-3.0, 0.25]])
    >>> kc.pruning.criteria.Magnitude()(model)["fc/kernel"]
    array([[1.  , 2.  ],
           [0.5 , 0.  ],
           [3.  , 0.25]], dtype=float32)
    """

    def score(self, graph, parts, samples, loss):
        return [
            np.abs(keras.ops.convert_to_numpy(part.variable).astype("float32")) for part in parts
        ]
