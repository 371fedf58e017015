"""BLEU of single sentences, for many pairs at once."""

import numpy as np

_ORDERS = 4


def sentence_bleu(candidates, references, ignore=()):
    """BLEU of each candidate against one reference, smoothed.

    The geometric mean of the clipped precisions of 1- to 4-grams, times the brevity penalty
    `min(1, exp(1 - reference length / candidate length))`. Of 2- to 4-grams one is added to the
    matches and to the number of n-grams (Lin and Och's smoothing), since a sentence without any
    common 4-gram would have 0 otherwise. A candidate without a common token, or without tokens, has
    0.

    Args:
        candidates: Integers `(pairs, length)`.
        references: Integers `(pairs, another length)`.
        ignore: Tokens that are not words: padding and the end, behind the words.

    Returns:
        Array `(pairs,)`, float64 from 0 to 1.

    Reference:
        K. Papineni, S. Roukos, T. Ward, W. Zhu, "BLEU: a Method for Automatic Evaluation of Machine
        Translation", 2002; C. Lin, F. Och, "ORANGE: a Method for Evaluating Automatic Evaluation
        Metrics for Machine Translation", 2004.
    """
    candidates, references = np.asarray(candidates), np.asarray(references)
    words, reference_words = (~np.isin(a, list(ignore)) for a in (candidates, references))
    length, reference_length = words.sum(1), reference_words.sum(1)
    equal = (candidates[:, :, None] == references[:, None]) & reference_words[:, None]
    repeats = candidates[:, :, None] == candidates[:, None]
    log_precisions = np.zeros(len(candidates))
    grams, same, matches = words, repeats, equal
    for order in range(1, _ORDERS + 1):
        if order > 1:
            # An n-gram is equal where the one before is and so are the tokens that follow.
            matches = matches[:, :-1, :-1] & equal[:, order - 1 :, order - 1 :]
            same = same[:, :-1, :-1] & repeats[:, order - 1 :, order - 1 :]
            grams = grams[:, :-1] & words[:, order - 1 :]
        # An n-gram counts unless it has come as often before as it is in the reference.
        earlier = np.tril(same & grams[:, None], -1).sum(2)
        hits = (grams & (earlier < matches.sum(2))).sum(1)
        added = int(order > 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_precisions += np.log((hits + added) / (grams.sum(1) + added)) / _ORDERS
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.exp(log_precisions + np.minimum(0.0, 1.0 - reference_length / length))
    return np.where((length > 0) & np.isfinite(score), score, 0.0)
