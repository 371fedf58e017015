"""DarkRank: the order in which the teacher ranks the samples of a batch."""

import itertools

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.distillation.feature_loss import FeatureLoss

_LARGEST_SOFT = 6


@keras.saving.register_keras_serializable(package="keras_compress")
class DarkRank(FeatureLoss):
    """Transfer of similarities between samples, for metric learning: needs no labels.

    The first sample of a group is the query, the others are its candidates, with the scores
    `S(x) = -alpha ||f(query) - f(x)||^beta`. Scores give each order of the candidates the
    Plackett-Luce probability `prod_i exp(S_i) / sum_(k >= i) exp(S_k)`. The loss is, mean of the
    groups,

    - `"hard"`: `-log P` by the student's scores of the order that the teacher's scores give;
    - `"soft"`: the divergence `KL(P_teacher || P_student)` over all orders, of which there are
      factorially many.

    Only distances within a batch count: widths of the embeddings may differ, and a rotation of
    either does not matter. Shuffle the data, so that queries and candidates change.

    Args:
        teacher_layer_name: Name of the teacher's embedding, with output `(batch, features)`;
            `None`: its output.
        student_layer_name: The same for the student.
        mode: `"hard"` or `"soft"`.
        alpha: Scale of the scores, above 0.
        beta: Power of the distance, above 0.
        candidates: How many samples follow each query in the batch, which then holds several groups
            (samples left over are not used); `None`: the batch is one group. In soft mode 1 to 6;
            `None` then needs batches of a fixed size of at most 7.

    Raises:
        ValueError: see `FeatureLoss`; also for too many candidates in soft mode.

    Reference:
        Y. Chen, N. Wang, Z. Zhang, "DarkRank: Accelerating Deep Metric Learning via Cross Sample
        Similarities Transfer", 2018.

    Example:

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> loss = kc.distillation.DarkRank(alpha=1.0, beta=1.0)
    >>> teacher = np.array([[0.0], [1.0], [2.0]])
    >>> student = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 5.0]])
    >>> round(float(loss.compute_loss(teacher, student)), 4)  # log(2): the student has a tie
    0.6931
    """

    def __init__(
        self,
        teacher_layer_name=None,
        student_layer_name=None,
        mode="hard",
        alpha=3.0,
        beta=3.0,
        candidates=None,
    ):
        super().__init__(teacher_layer_name, student_layer_name, adapter=None)
        self.mode = validation.one_of("mode", mode, ("hard", "soft"), owner=self)
        self.alpha = validation.number("alpha", alpha, 0, low_open=True, owner=self)
        self.beta = validation.number("beta", beta, 0, low_open=True, owner=self)
        if candidates is not None:
            candidates = validation.positive_int("candidates", candidates, owner=self)
            self._check_candidates(candidates)
        self.candidates = candidates

    def _check_candidates(self, candidates):
        if self.mode == "soft" and (candidates is None or candidates > _LARGEST_SOFT):
            raise ValueError(
                f"{validation.prefix(self)}mode='soft' sums over all orders of the candidates, of "
                f"which there may be at most {_LARGEST_SOFT}; got "
                f"{'a batch of no fixed size' if candidates is None else candidates}. Give "
                "`candidates`, so that the batch is split into small groups, or use mode='hard'."
            )

    def distance(self, teacher, student):
        candidates = self.candidates
        if candidates is None:
            size = ops.shape(teacher)[0]
            if self.mode == "soft":
                size = teacher.shape[0]
                candidates = None if size is None else size - 1
                self._check_candidates(candidates)
        else:
            size = candidates + 1
        target, scores = self._scores(teacher, size), self._scores(student, size)
        if self.mode == "hard":
            order = ops.flip(ops.argsort(target, axis=1), axis=1)
            losses = -_log_likelihood(ops.take_along_axis(scores, order, axis=1))
        else:
            losses = _divergence(target, scores, candidates)
        # A small last batch may have no whole group.
        groups = ops.maximum(ops.shape(losses)[0], 1)
        return ops.sum(losses, keepdims=True) / ops.cast(groups, losses.dtype)

    def _scores(self, features, size):
        """Scores of the candidates, `(groups, candidates)`."""
        groups = ops.shape(features)[0] // size
        features = features[: groups * size]
        features = ops.reshape(features, (groups, size, features.shape[-1]))
        squares = ops.sum(ops.square(features[:, 1:] - features[:, :1]), axis=-1)
        # Powers below 2 have no finite slope at distance 0: copies of the query get the gradient 0.
        apart = ops.greater(squares, 0.0)
        powers = ops.power(ops.where(apart, squares, 1.0), self.beta / 2)
        return -self.alpha * ops.where(apart, powers, 0.0)

    def check_shapes(self, teacher_shape, student_shape):
        if len(teacher_shape) != 2 or len(student_shape) != 2:
            raise ValueError(
                f"{validation.prefix(self)}embeddings must have the shape (batch, features); got "
                f"{tuple(teacher_shape)} from teacher layer {self.teacher_layer_name!r} and "
                f"{tuple(student_shape)} from student layer {self.student_layer_name!r}."
            )

    def get_config(self):
        config = super().get_config()
        del config["adapter"]
        return {
            **config,
            "mode": self.mode,
            "alpha": self.alpha,
            "beta": self.beta,
            "candidates": self.candidates,
        }


def _log_likelihood(scores):
    """Logarithm of the Plackett-Luce probability of the order in which scores stand (last axis)."""
    place = ops.cumsum(ops.ones_like(scores), axis=-1)
    later = place[..., None, :] >= place[..., :, None]
    rest = ops.logsumexp(ops.where(later, scores[..., None, :], -1e30), axis=-1)
    return ops.sum(scores - rest, axis=-1)


def _divergence(target, scores, candidates):
    orders = np.array(list(itertools.permutations(range(candidates))))
    target, output = (
        _log_likelihood(ops.reshape(ops.take(s, orders.reshape(-1), axis=1), (-1, *orders.shape)))
        for s in (target, scores)
    )
    return ops.sum(ops.exp(target) * (target - output), axis=1)
