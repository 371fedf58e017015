"""Beam search with any model that gives the next token's scores, for many samples at once."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation


def beam_search(
    step_fn,
    start_tokens,
    max_length,
    end_token,
    beam=5,
    *,
    state=None,
    length_penalty=0.0,
    pad_token=0,
):
    """Finds the likeliest sequences of an autoregressive model.

    In each step the `beam` likeliest sequences of each sample are kept, out of all continuations
    by one token of those kept so far. A sequence that has ended keeps its score and its place.

    Args:
        step_fn: Function `(tokens, length, state) -> (scores, state)`. `tokens` are integers
            `(rows, max_length)`, of which the first `length` are set and the rest is padding (so
            that shapes stay the same in each step); rows are `samples * beam`, those of a sample
            one after the other. `scores` are logits or log-probabilities `(rows, vocabulary)` of
            the token at place `length`. `state` is what the function needs for each row, and what
            it gave the step before, in the order of the rows of `tokens`.
        start_tokens: Integers `(samples,)`, or `(samples, n)` for sequences that have begun.
        max_length: Tokens of a sequence, start and end included.
        end_token: The token that ends a sequence.
        beam: Number of sequences for each sample; 1 is greedy search.
        state: Nested structure of arrays with `samples` rows, such as encoder outputs or the states
            of recurrent layers; each row is repeated `beam` times. `None`: there is none.
        length_penalty: The final order is by `log-probability / length ** length_penalty`, where
            the length is that of the tokens after the start. 0 ranks by probability.
        pad_token: What follows the end.

    Returns:
        `(sequences, scores)`: integers `(samples, beam, max_length)` and what they are ranked by,
        float64 `(samples, beam)`, the best first. Where there are fewer sequences than `beam`, the
        rest have the score `-inf`.

    Raises:
        ValueError: for shapes that do not fit, tokens that are not in the vocabulary, scores that
            are NaN, and numbers out of range.

    Example: a model of which token follows which.

    >>> import numpy as np
    >>> import keras_compress as kc
    >>> follows = np.log([[1, 0, 0], [0.1, 0.5, 0.4], [0.9, 0.05, 0.05]] + np.full((3, 3), 1e-9))
    >>> def step(tokens, length, state):
    ...     return follows[tokens[:, length - 1]], state
    >>> sequences, scores = kc.distillation.beam_search(step, [1, 2], 4, end_token=0, beam=2)
    >>> sequences[:, 0]
    array([[1, 2, 0, 0],
           [2, 0, 0, 0]])
    >>> np.exp(scores[:, 0]).round(2)
    array([0.36, 0.9 ])
    """
    max_length, beam = (
        validation.positive_int(name, value, "beam_search")
        for name, value in (("max_length", max_length), ("beam", beam))
    )
    penalty = validation.number("length_penalty", length_penalty, 0, owner="beam_search")
    start = _check_start(start_tokens, max_length)
    samples, length = start.shape
    begun = length
    state = _take(_check_state(state, samples), np.repeat(np.arange(samples), beam))

    tokens = np.full((samples, beam, max_length), pad_token, start.dtype)
    tokens[:, :, :begun] = start[:, None]
    # Copies of one start would be found several times: one row of each sample counts.
    totals = np.full((samples, beam), -np.inf)
    totals[:, 0] = 0.0
    ended = np.zeros((samples, beam), bool)
    ends = np.full((samples, beam), max_length)
    rows = np.arange(samples)[:, None]
    while length < max_length and not (ended | (totals == -np.inf)).all():
        scores, state = step_fn(tokens.reshape(-1, max_length), length, state)
        scores = _log_probabilities(scores, samples, beam, end_token, pad_token)
        # The one continuation of what has ended is by padding, at no cost.
        scores[ended] = -np.inf
        scores[ended, pad_token] = 0.0
        vocabulary = scores.shape[-1]
        best, totals = _largest((totals[:, :, None] + scores).reshape(samples, -1), beam)
        parents, new = np.divmod(best, vocabulary)
        tokens, ended, ends = tokens[rows, parents], ended[rows, parents], ends[rows, parents]
        tokens[:, :, length] = new
        length += 1
        ends = np.where(~ended & (new == end_token), length, ends)
        ended |= new == end_token
        order = (rows * beam + parents).reshape(-1)
        state = _take(state, order)
    totals = totals / np.maximum(ends - begun, 1) ** penalty
    order = np.argsort(-totals, axis=1, kind="stable")
    return tokens[rows, order], totals[rows, order]


def _largest(values, count):
    """Places and values of the largest of each row, in falling order; of equal ones the first."""
    if values.shape[1] > 4 * count:
        # A pass without sorting leaves what is not below the last of them.
        last = np.partition(values, -count, axis=1)[:, -count, None]
        width = max(count, int((values >= last).sum(axis=1).max()))
        if width < values.shape[1] // 4:
            some = np.sort(np.argpartition(-values, width - 1, axis=1)[:, :width], axis=1)
            inner, largest = _largest(np.take_along_axis(values, some, axis=1), count)
            return np.take_along_axis(some, inner, axis=1), largest
    places = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return places, np.take_along_axis(values, places, axis=1)


def _log_probabilities(scores, samples, beam, end_token, pad_token):
    scores = np.array(ops.convert_to_numpy(scores), "float64")
    if scores.ndim != 2 or len(scores) != samples * beam:
        raise ValueError(
            f"beam_search: `step_fn` must give scores ({samples * beam}, vocabulary), a row for "
            f"each row of tokens; got shape {scores.shape}."
        )
    for name, token in (("end_token", end_token), ("pad_token", pad_token)):
        validation.integer(name, token, 0, scores.shape[1] - 1, owner="beam_search")
    largest = scores.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError(
            "beam_search: `step_fn` gives scores that are NaN, infinite, or -inf for all tokens."
        )
    scores -= largest
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores.reshape(samples, beam, -1)


def _check_start(tokens, max_length):
    tokens = ops.convert_to_numpy(tokens)
    start = tokens[:, None] if tokens.ndim == 1 else tokens
    if start.ndim != 2 or not start.size or start.dtype.kind not in "iu":
        raise ValueError(
            "beam_search: `start_tokens` must be integers (samples,) or (samples, n); got "
            f"{tokens.dtype} of shape {tokens.shape}."
        )
    if start.shape[1] >= max_length:
        raise ValueError(
            f"beam_search: `max_length` must be above the {start.shape[1]} start tokens; got "
            f"max_length={max_length}."
        )
    return start


def _check_state(state, samples):
    for array in keras.tree.flatten(state):
        shape = getattr(array, "shape", ())
        if array is not None and (not shape or shape[0] != samples):
            raise ValueError(
                f"beam_search: `state` must be arrays of {samples} rows, one for each start; got "
                f"shape {tuple(shape)}."
            )
    return state


def _take(state, rows):
    def take(array):
        return None if array is None else np.take(ops.convert_to_numpy(array), rows, axis=0)

    return keras.tree.map_structure(take, state)
