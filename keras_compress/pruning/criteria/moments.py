"""`Moments`: mean and variance of data that comes in batches."""

import numpy as np


class Moments:
    """Mean and variance over rows, without keeping them and without cancellation.

    Reference:
        Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances", 1979.
    """

    def __init__(self):
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def update(self, rows):
        """Takes in an array `(rows, ...)`."""
        rows = rows.astype("float64")
        mean, count = rows.mean(0), self.count + len(rows)
        shift = mean - self.mean
        self._squares = (
            self._squares
            + np.square(rows - mean).sum(0)
            + np.square(shift) * self.count * len(rows) / count
        )
        self.mean = self.mean + shift * len(rows) / count
        self.count = count

    @property
    def variance(self):
        """Of the rows so far; divided by their number."""
        return self._squares / self.count
