"""Specialists: experts on classes that a generalist confuses."""

import keras
import numpy as np

from keras_compress import validation
from keras_compress.samples import Samples, structured


class Specialists:
    """Subsets of classes that a trained model confuses, for one expert net each.

    The covariance of the model's predicted probabilities tells which classes are predicted
    together; its columns are clustered by k-means. An expert on a cluster has one output for each
    of its classes and a last one, the dustbin, for all others. It starts from the generalist's
    weights, is trained on data of which half are of its classes, and has its dustbin's logit raised
    by the logarithm of how much those were over-represented; `predict` then puts all together.

    Args:
        model: The generalist: a built classifier with one output, logits or probabilities.
        data: Inputs, or `(inputs, labels)`, or batches of them; labels are not used.
        clusters: Number of specialists, from 1 to the number of classes.
        from_logits: Whether the model gives logits.
        seed: Integer: start of k-means.

    Attributes:
        subsets: List of arrays, the classes of each specialist, ascending. Together they are all
            classes, each in one subset; of a subset of one class there is nothing to tell apart.

    Raises:
        ValueError: for a number of clusters out of range, or data that do not fit the model.

    Reference:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    >>> model.set_weights([np.array([[3, 3, 0, 0], [0, 0, 3, 3], [0] * 4, [0] * 4]), np.zeros(4)])
    >>> x = np.random.default_rng(0).normal(size=(100, 4))
    >>> specialists = kc.distillation.Specialists(model, x, clusters=2)
    >>> sorted(subset.tolist() for subset in specialists.subsets)
    [[0, 1], [2, 3]]
    """

    def __init__(self, model, data, clusters, from_logits=True, seed=0):
        from sklearn.cluster import KMeans

        if len(getattr(model, "outputs", None) or ()) != 1:
            raise ValueError(
                "Specialists: `model` must be a Sequential or functional model with one output; "
                f"got {model!r}."
            )
        probabilities = []
        for inputs, _ in Samples(model, data, owner=self):
            outputs = model(structured(model, inputs), training=False)
            outputs = keras.ops.softmax(outputs) if from_logits else outputs
            probabilities.append(keras.ops.convert_to_numpy(outputs))
        probabilities = np.concatenate(probabilities).astype("float64")
        self.classes = probabilities.shape[1]
        clusters = validation.integer("clusters", clusters, 1, self.classes, owner=self)
        self.from_logits = from_logits
        self.covariance = np.cov(probabilities, rowvar=False)
        means = KMeans(clusters, n_init=10, random_state=validation.seed(seed, self))
        found = means.fit_predict(self.covariance)
        self.subsets = [np.flatnonzero(found == i) for i in np.unique(found)]

    def labels(self, y, specialist):
        """Labels for an expert.

        Args:
            y: Class indices, `(samples,)`.
            specialist: Number of the subset.

        Returns:
            Integers `(samples,)`: place in the subset, or its size for the dustbin.
        """
        subset = self._subset(specialist)
        places = np.full(self.classes, len(subset))
        places[subset] = np.arange(len(subset))
        y = np.asarray(y).reshape(-1)
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= self.classes:
            raise ValueError(
                f"Specialists: `y` must be class indices from 0 to {self.classes - 1}; got "
                f"{y.dtype} from {y.min()} to {y.max()}."
            )
        return places[y]

    def sample(self, y, specialist, seed=0):
        """Rows to train an expert on: all of its classes, and as many of the others.

        Args:
            y: Class indices, `(samples,)`.
            specialist: Number of the subset.
            seed: Integer: draw of the others.

        Returns:
            Tuple of row indices, shuffled, and the value to add to the dustbin's logit afterwards:
            the logarithm of how much rarer the others are in the sample than in the data.
        """
        rng = np.random.default_rng(seed)
        inside = self.labels(y, specialist) < len(self._subset(specialist))
        special, others = np.flatnonzero(inside), np.flatnonzero(~inside)
        count = min(len(special), len(others))
        rows = np.concatenate([special, rng.choice(others, count, replace=False)])
        return rng.permutation(rows), float(np.log(len(others) / count)) if count else 0.0

    def combine(self, generalist, experts, top=1, steps=200):
        """Probabilities of all classes from those of the generalist and of its experts.

        For each sample, experts whose classes are among the generalist's `top` ones are asked. The
        answer `q` minimises `KL(p_general || q) + sum_m KL(p_m || q)`, in which an expert's dustbin
        is compared with the sum of `q` over the classes that are not its own.

        Args:
            generalist: Probabilities `(samples, classes)`.
            experts: List of probabilities `(samples, classes of the subset + 1)`.
            top: How many of the generalist's classes count.
            steps: Most steps of the minimisation.

        Returns:
            Probabilities `(samples, classes)`.
        """
        p = np.asarray(generalist, "float64")
        if p.shape[1:] != (self.classes,) or len(experts) != len(self.subsets):
            raise ValueError(
                f"Specialists: there must be probabilities of {self.classes} classes and of "
                f"{len(self.subsets)} experts; got shape {p.shape} and {len(experts)}."
            )
        top = validation.integer("top", top, 1, self.classes, owner=self)
        best = np.argsort(-p, axis=1)[:, :top]
        asked = [np.isin(best, subset).any(axis=1, keepdims=True) for subset in self.subsets]
        q = np.maximum(p, 1e-12) / np.maximum(p, 1e-12).sum(1, keepdims=True)
        for _ in range(steps):
            # Expectation maximisation: the dustbin's mass is shared out as q has it.
            mass = p.copy()
            for subset, expert, active in zip(self.subsets, experts, asked, strict=True):
                expert = np.asarray(expert, "float64")
                rest = q.copy()
                rest[:, subset] = 0
                rest *= expert[:, -1:] / np.maximum(rest.sum(1, keepdims=True), 1e-300)
                rest[:, subset] = expert[:, :-1]
                mass += active * rest
            new = mass / mass.sum(1, keepdims=True)
            if np.abs(new - q).max() < 1e-9:
                break
            q = new
        return new

    def _subset(self, specialist):
        index = validation.integer("specialist", specialist, 0, len(self.subsets) - 1, owner=self)
        return self.subsets[index]
