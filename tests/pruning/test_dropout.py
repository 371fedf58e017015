"""Han et al. 2015: dropout falls with the square root of the connections that are left."""

import numpy as np
import pytest

from keras_compress.pruning import retraining_dropout_rate


def test_han_dropout_rate_formula():
    before, after = 300 * 100, 2400
    expected = 0.5 * np.sqrt(after / before)
    assert retraining_dropout_rate(0.5, 1 - after / before) == pytest.approx(expected)
    assert retraining_dropout_rate(0.3, 0.0) == 0.3


@pytest.mark.parametrize("rate, sparsity", [(1.0, 0.5), (-0.1, 0.5), (0.5, 1.0), (0.5, "half")])
def test_bad_arguments_are_refused(rate, sparsity):
    with pytest.raises(ValueError, match="must be a number"):
        retraining_dropout_rate(rate, sparsity)
