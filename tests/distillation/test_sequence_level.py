"""Kim and Rush: beam search, sentence BLEU, and the losses of the three modes."""

import collections
import itertools
import math

import keras
import numpy as np
import pytest

import keras_compress as kc
from keras_compress.distillation.sentence_bleu import sentence_bleu
from tests.gradients import gradient

RNG = np.random.default_rng(0)
SequenceLevel = kc.distillation.SequenceLevel
beam_search = kc.distillation.beam_search
END = 3


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


# Scores (sample, place, token before the last, last token, next token).
TABLE = RNG.normal(0, 1.5, (2, 5, 4, 4, 4))


def step(tokens, length, sample):
    before = tokens[:, max(length - 2, 0)]
    return TABLE[sample, length, before, tokens[:, length - 1]], sample


def search(beam, max_length=5, **options):
    return beam_search(step, [1, 2], max_length, END, beam, state=np.arange(2), **options)


def exhaustive(sample, start, max_length):
    """All sequences with their log-probabilities, by trying every one."""
    found = {}
    for tail in itertools.product(range(4), repeat=max_length - 1):
        tokens, total, length = [start], 0.0, 1
        for token in tail:
            before = tokens[max(length - 2, 0)]
            total += log_softmax(TABLE[sample, length, before, tokens[-1]])[token]
            tokens.append(token)
            length += 1
            if token == END:
                break
        found[tuple(tokens) + (0,) * (max_length - length)] = (total, length - 1)
    return found


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_of_all_sequences_equals_exhaustive_search(penalty):
    sequences, scores = search(4**4, length_penalty=penalty)
    for sample, start in enumerate([1, 2]):
        found = exhaustive(sample, start, 5)
        want = {tokens: total / n**penalty for tokens, (total, n) in found.items()}
        count = len(want)
        assert np.isneginf(scores[sample, count:]).all()
        got = dict(
            zip(map(tuple, sequences[sample, :count].tolist()), scores[sample], strict=False)
        )
        assert got.keys() == want.keys()
        assert [got[key] for key in want] == pytest.approx(list(want.values()))
        assert (np.diff(scores[sample, :count]) <= 0).all()
        # Probabilities of all that can be written sum to 1.
        if penalty == 0:
            assert np.exp(scores[sample, :count]).sum() == pytest.approx(1)


def test_narrow_beam_equals_a_plain_one():
    sequences, scores = search(3)
    for sample, start in enumerate([1, 2]):
        beam = [([start], 0.0)]
        for length in range(1, 5):
            grown = []
            for tokens, total in beam:
                if END in tokens[1:]:
                    grown.append((tokens, total))
                    continue
                before = tokens[max(length - 2, 0)]
                scored = log_softmax(TABLE[sample, length, before, tokens[-1]])
                grown += [([*tokens, token], total + scored[token]) for token in range(4)]
            beam = sorted(grown, key=lambda one: -one[1])[:3]
        assert scores[sample] == pytest.approx([total for _, total in beam])
        want = [tokens + [0] * (5 - len(tokens)) for tokens, _ in beam]
        np.testing.assert_array_equal(sequences[sample], want)


def test_beam_of_one_is_greedy_in_a_large_vocabulary():
    """Many tokens: where the best are picked without sorting all, ties included."""
    scores = np.round(RNG.normal(size=(50, 50)), 1)
    wide, _ = beam_search(lambda t, n, s: (scores[t[:, n - 1]], s), [7], 6, 0, beam=1)
    want = [7]
    while len(want) < 6:
        want.append(0 if 0 in want else int(scores[want[-1]].argmax()))
    np.testing.assert_array_equal(wide[0, 0], want)
    flat, _ = beam_search(lambda t, n, s: (np.zeros((len(t), 50)), s), [7], 2, 0, beam=4)
    np.testing.assert_array_equal(flat[0, :, 1], [0, 1, 2, 3])


def test_search_stops_when_all_have_ended_and_takes_prefixes():
    calls = []

    def end(tokens, length, state):
        calls.append(length)
        return np.where(np.arange(4) == END, 0.0, -np.inf) + np.zeros((len(tokens), 1)), state

    sequences, scores = beam_search(end, [[1, 2], [2, 2]], 9, END, beam=2)
    assert calls == [2]
    np.testing.assert_array_equal(sequences[:, 0, :4], [[1, 2, 3, 0], [2, 2, 3, 0]])
    np.testing.assert_array_equal(scores, [[0, -np.inf]] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_tokens": [0.5]}, "`start_tokens` must be integers"),
        ({"start_tokens": [[1, 2, 3]], "max_length": 3}, "above the 3 start tokens"),
        ({"end_token": 4}, "`end_token` must be an integer from 0 to 3"),
        ({"pad_token": -1}, "`pad_token` must be an integer from 0 to 3"),
        ({"beam": 0}, "`beam`"),
        ({"state": np.zeros(3)}, "arrays of 1 rows"),
        ({"step_fn": lambda t, n, s: (np.zeros(4), s)}, r"scores \(2, vocabulary\)"),
        ({"step_fn": lambda t, n, s: (np.full((2, 4), np.nan), s)}, "NaN"),
    ],
)
def test_bad_input_of_beam_search(change, message):
    arguments = {
        "step_fn": lambda t, n, s: (np.zeros((2, 4)), s),
        "start_tokens": [1],
        "max_length": 4,
        "end_token": END,
        "beam": 2,
    }
    with pytest.raises(ValueError, match=message):
        beam_search(**{**arguments, **change})


def bleu(candidate, reference):
    """By counting n-grams in dicts, of one pair."""
    if not candidate:
        return 0.0
    total = 0.0
    for n in range(1, 5):
        grams = [
            collections.Counter(tuple(s[i : i + n]) for i in range(len(s) - n + 1))
            for s in (candidate, reference)
        ]
        hits = sum((grams[0] & grams[1]).values()) + (n > 1)
        count = sum(grams[0].values()) + (n > 1)
        if not hits:
            return 0.0
        total += math.log(hits / count) / 4
    return math.exp(total + min(0, 1 - len(reference) / len(candidate)))


def words(row, ignore=(0, END)):
    return [int(token) for token in row if token not in ignore]


def padded(pairs, length):
    """Sentences of a small vocabulary, full of repeats, of all lengths from 0."""
    tokens = RNG.choice([1, 2, 4], (pairs, length))
    return np.where(np.arange(length) < RNG.integers(0, length + 1, (pairs, 1)), tokens, 0)


def test_sentence_bleu_equals_counted_n_grams():
    candidates, references = padded(60, 9), padded(60, 7)
    want = [bleu(words(c), words(r)) for c, r in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(sentence_bleu(candidates, references, (0,)), want, atol=1e-12)
    whole = references[(references > 0).any(1)]
    np.testing.assert_allclose(sentence_bleu(whole, whole, (0,)), 1.0)


def test_interpolation_takes_the_highest_sentence_bleu_and_sequence_the_likeliest():
    def generate(x, beam):
        return search(beam) if len(x) == 2 else None

    gold = np.array([[1, 2, 2, 1, 3], [2, 1, 2, 3, 0]])
    sequences, _ = search(20)
    best = SequenceLevel(generate, "sequence", 20).targets(np.arange(2))
    np.testing.assert_array_equal(best, sequences[:, 0])
    loss = SequenceLevel(generate, "interpolation", 20, end_token=END)
    chosen = loss.targets(np.arange(2), gold, batch_size=2)
    for row, candidates, reference in zip(chosen, sequences, gold, strict=True):
        similarity = [bleu(words(c[1:]), words(reference[1:])) for c in candidates]
        np.testing.assert_array_equal(row, candidates[np.argmax(similarity)])
    assert (chosen != best).any()


def test_batches_of_targets_and_candidates_that_are_not_there():
    def generate(x, beam):
        sequences = np.stack([np.stack([x, x], 1), np.stack([x, x + 1], 1)], 1)
        return sequences, np.array([[0.0, -np.inf]] * len(x))

    x = np.arange(1, 6)
    gold = np.stack([x, x + 1], 1)
    targets = SequenceLevel(generate, "interpolation").targets(x, gold, batch_size=2)
    np.testing.assert_array_equal(targets, np.stack([x, x], 1))


ONE = np.array([1])
LABELS = np.array([[1, 2, 0, 0], [3, 1, 2, 0], [2, 2, 2, 2]])
TEACHER, STUDENT = (RNG.normal(size=(3, 4, 5)).astype("float32") for _ in range(2))


@pytest.mark.parametrize("mode", ["word", "sequence"])
def test_padding_is_excluded_from_the_loss(mode):
    loss = SequenceLevel(mode=mode)
    p, q = log_softmax(TEACHER), log_softmax(STUDENT)
    each = (np.exp(p) * (p - q)).sum(-1)
    if mode == "sequence":
        each = -np.take_along_axis(q, LABELS[..., None], -1)[..., 0]
    want = each[LABELS != 0].mean()
    assert float(loss.compute_loss(TEACHER, STUDENT, y=LABELS)) == pytest.approx(want, rel=1e-5)
    slope = gradient(lambda s: loss.compute_loss(TEACHER, s, y=LABELS), STUDENT)
    assert (slope[LABELS == 0] == 0).all() and (slope[LABELS != 0] != 0).all()
    # Another mark of padding, outside of the vocabulary; and none at all.
    outside = SequenceLevel(mode=mode, pad_token=-1)
    marked = np.where(LABELS == 0, -1, LABELS)
    got = float(outside.compute_loss(TEACHER, STUDENT, y=marked))
    assert got == pytest.approx(want, rel=1e-5)
    whole = SequenceLevel(mode=mode, pad_token=None)
    got = float(whole.compute_loss(TEACHER, STUDENT, y=LABELS))
    assert got == pytest.approx(each.mean(), rel=1e-5)
    assert float(loss.compute_loss(TEACHER, STUDENT, y=0 * LABELS)) == 0


def test_in_the_distiller_the_student_writes_the_teachers_sequences_greedily():
    def net(name):
        return keras.Sequential([keras.Input((3,)), keras.layers.Embedding(4, 4)], name=name)

    def generate(x, beam):
        def follow(tokens, length, state):
            return teacher.predict_on_batch(tokens[:, :3])[:, length - 1], state

        return beam_search(follow, x, 4, END, beam)

    teacher, student = net("teacher"), net("student")
    follows = [[0, 0, 0, 0], [0, 1, 4, 2], [0, 3, 1, 5], [0, 0, 0, 0]]
    teacher.set_weights([np.array(follows, "float32")])
    loss = SequenceLevel(generate, "sequence", beam=3, end_token=END)
    start = np.array([1, 2] * 16)
    sequences = loss.targets(start)
    distiller = kc.distillation.Distiller(teacher, student, loss, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(5.0))
    distiller.fit(sequences[:, :-1], sequences[:, 1:], epochs=10, verbose=0)
    table = student.get_weights()[0]
    greedy = beam_search(lambda t, n, s: (table[t[:, n - 1]], s), start, 4, END, beam=1)[0]
    np.testing.assert_array_equal(greedy[:, 0], sequences)
    again = type(distiller.distillation_losses[0]).from_config(loss.get_config())
    assert again.get_config() == loss.get_config() and again.teacher_generate is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequenceLevel(mode="words"), "Did you mean 'word'"),
        (lambda: SequenceLevel("teacher"), "`teacher_generate` must be a function"),
        (lambda: SequenceLevel(beam=0), "`beam`"),
        (lambda: SequenceLevel().targets([1]), "needs `teacher_generate`"),
        (lambda: SequenceLevel(search, "word").targets([1]), "a mode other than 'word'"),
        (lambda: SequenceLevel(search, "interpolation").targets(ONE), "needs the gold sequences"),
        (
            lambda: SequenceLevel(lambda x, b: (np.zeros((1, 5)), np.zeros(1))).targets(ONE),
            r"sequences \(1, 5, length\)",
        ),
        (lambda: SequenceLevel(search).targets([1, 2]), "a row for each sample"),
        (lambda: SequenceLevel().compute_loss(TEACHER, STUDENT), "labels `y`"),
        (lambda: SequenceLevel().compute_loss(TEACHER, STUDENT, y=LABELS[:, :2]), "labels `y`"),
    ],
)
def test_bad_input_of_the_loss(make, message):
    with pytest.raises(ValueError, match=message):
        make()
