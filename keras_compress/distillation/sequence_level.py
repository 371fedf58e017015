"""SequenceLevel: distillation of models that give sequences, token by token or as a whole."""

import keras
import numpy as np
from keras import ops

from keras_compress import validation
from keras_compress.distillation import adapters
from keras_compress.distillation.logits_distillation import LogitsDistillation
from keras_compress.distillation.sentence_bleu import sentence_bleu

_MODES = ("word", "sequence", "interpolation")


@keras.saving.register_keras_serializable(package="keras_compress")
class SequenceLevel(LogitsDistillation):
    """Sequence-level distillation: the student learns what the teacher would write.

    - `"word"`: soft targets at each place of the gold sequences:
      `T^2 KL(softmax(z_teacher / T) || softmax(z_student / T))`.
    - `"sequence"`: crossentropy on the likeliest sequence that the teacher's beam search finds: it
      has less variety than the gold ones, so that the student needs no beam afterwards.
    - `"interpolation"`: the same on that one of the beam which is most like the gold sequence, by
      sentence BLEU (1- to 4-grams, one added to the counts of 2- to 4-grams).

    `targets` makes the sequences of the last two modes, once, before training. The loss is that of
    a `kc.distillation.Distiller`, whose labels `y` are the tokens to give at each place: gold in
    the mode `"word"`, from `targets` in the others. It is the mean over the places whose label is
    not padding. In the last two modes the teacher does not matter any more, and
    `keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=pad_token)` in the
    student's own `fit` gives the same without running it; both kinds can be had at once by
    `"word"` on labels that come from `targets`.

    Args:
        teacher_generate: Function `(x, beam) -> (sequences, scores)`, such as one that calls
            `beam_search`: sequences `(samples, beam, length)`, start token first, best first. It is
            not saved with a model. `None` if `targets` is not called.
        mode: `"word"`, `"sequence"` or `"interpolation"`.
        beam: Width of the teacher's beam.
        temperature: `T` of the mode `"word"`.
        pad_token: Label of places that do not count; `None`: all do.
        end_token: Token that ends a sequence, which BLEU does not count as a word. `None`: it does.
        teacher_from_logits: Whether the teacher gives logits; `False`: probabilities.
        student_from_logits: The same for the student.

    Raises:
        ValueError: for an unknown mode and numbers out of range; in training without labels or if
            they do not have the shape of the outputs without the last axis.

    Reference:
        Y. Kim, A. M. Rush, "Sequence-Level Knowledge Distillation", 2016.

    Example: the teacher is a table of which token follows which (0 is padding, 3 the end).

    >>> import keras
    >>> import numpy as np
    >>> import keras_compress as kc
    >>> follows = np.log([[1, 0, 0, 0], [0, 0.1, 0.7, 0.2], [0, 0.2, 0.1, 0.7], [1, 0, 0, 0]]
    ...     + np.full((4, 4), 1e-9))
    >>> def generate(x, beam):
    ...     def step(tokens, length, state):
    ...         return follows[tokens[:, length - 1]], state
    ...     return kc.distillation.beam_search(step, x, 5, end_token=3, beam=beam)
    >>> loss = kc.distillation.SequenceLevel(generate, "sequence", beam=2, end_token=3)
    >>> sequences = loss.targets(np.array([1, 2, 1]))
    >>> sequences
    array([[1, 2, 3, 0, 0],
           [2, 3, 0, 0, 0],
           [1, 2, 3, 0, 0]])
    >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Embedding(4, 4)])
    >>> student.compile(
    ...     "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    ... )
    >>> history = student.fit(sequences[:, :-1], sequences[:, 1:], verbose=0)
    """

    def __init__(
        self,
        teacher_generate=None,
        mode="sequence",
        beam=5,
        *,
        temperature=1.0,
        pad_token=0,
        end_token=None,
        teacher_from_logits=True,
        student_from_logits=True,
    ):
        super().__init__(
            temperature,
            teacher_from_logits=teacher_from_logits,
            student_from_logits=student_from_logits,
        )
        if teacher_generate is not None and not callable(teacher_generate):
            raise ValueError(
                f"{validation.prefix(self)}`teacher_generate` must be a function (x, beam) -> "
                f"(sequences, scores), or None; got teacher_generate={teacher_generate!r}."
            )
        self.teacher_generate = teacher_generate
        self.mode = validation.one_of("mode", mode, _MODES, owner=self)
        self.beam = validation.positive_int("beam", beam, self)
        self.pad_token = pad_token
        self.end_token = end_token

    def targets(self, x, y=None, batch_size=32):
        """Sequences of the teacher for the student to learn.

        Args:
            x: What the teacher writes from: array or nested structure of them.
            y: Gold sequences `(samples, length)`, start token first; for interpolation only.
            batch_size: Samples at a time.

        Returns:
            Integers `(samples, length)`, start token first. A student that reads
            `sequences[:, :-1]` has `sequences[:, 1:]` as labels.
        """
        if self.mode == "word" or self.teacher_generate is None:
            raise ValueError(
                f"{validation.prefix(self)}targets() needs `teacher_generate` and a mode other "
                f"than 'word', whose labels are the gold sequences; got mode={self.mode!r}, "
                f"teacher_generate={self.teacher_generate!r}."
            )
        x = keras.tree.map_structure(np.asarray, x)
        counts = {array.shape[:1] for array in keras.tree.flatten(x)}
        if len(counts) != 1 or () in counts or (0,) in counts:
            raise ValueError(
                f"{validation.prefix(self)}`x` must be an array, or a structure of arrays, with "
                f"a row for each sample; got rows {sorted(counts)}."
            )
        ((samples,),) = counts
        step = validation.positive_int("batch_size", batch_size, self)
        if self.mode == "interpolation":
            y = np.asarray(y)
            if y.ndim != 2 or len(y) != samples:
                raise ValueError(
                    f"{validation.prefix(self)}interpolation needs the gold sequences `y` "
                    f"({samples}, length); got shape {y.shape}."
                )
        chosen = []
        for start in range(0, samples, step):
            rows = slice(start, start + step)
            part = keras.tree.map_structure(lambda array, rows=rows: array[rows], x)
            sequences, scores = self._generate(part)
            best = np.zeros(len(sequences), int)
            if self.mode == "interpolation":
                best = self._similarity(sequences, scores, y[rows]).argmax(axis=1)
            chosen.append(sequences[np.arange(len(sequences)), best])
        return np.concatenate(chosen)

    def _generate(self, x):
        rows = len(keras.tree.flatten(x)[0])
        sequences, scores = map(ops.convert_to_numpy, self.teacher_generate(x, self.beam))
        if sequences.ndim != 3 or len(sequences) != rows or scores.shape != sequences.shape[:2]:
            raise ValueError(
                f"{validation.prefix(self)}`teacher_generate` must give sequences ({rows}, "
                f"{self.beam}, length) and scores ({rows}, {self.beam}); got shapes "
                f"{sequences.shape} and {scores.shape}."
            )
        return sequences, scores

    def _similarity(self, sequences, scores, gold):
        """BLEU of each candidate `(samples, candidates)`; below 0 where there is none."""
        count = sequences.shape[1]
        # The start token is the same everywhere.
        candidates = sequences[:, :, 1:].reshape(len(gold) * count, -1)
        references = np.repeat(gold[:, 1:], count, axis=0)
        ignore = [t for t in (self.pad_token, self.end_token) if t is not None]
        bleu = sentence_bleu(candidates, references, ignore).reshape(-1, count)
        return np.where(np.isneginf(scores), -1.0, bleu)

    def compute_loss(self, teacher_outputs, student_outputs, y=None, **kwargs):
        places = tuple(student_outputs.shape[:-1])
        needed = self.mode != "word" or self.pad_token is not None
        if needed and (y is None or not adapters.compatible(tuple(y.shape), places)):
            raise ValueError(
                f"{validation.prefix(self)}the labels `y` must be the token to give at each place, "
                f"{places}, in kc.distillation.Distiller; got "
                f"{None if y is None else tuple(y.shape)}. (Keras's own Distiller does not hand "
                "them on.)"
            )
        if self.mode == "word":
            losses = self.divergences(teacher_outputs, student_outputs)
        else:
            labels = ops.cast(y, "int32")
            if self.pad_token is not None:
                # Padding need not be a token of the vocabulary.
                labels = ops.where(ops.equal(labels, self.pad_token), 0, labels)
            outputs = ops.cast(student_outputs, "float32")
            losses = ops.sparse_categorical_crossentropy(
                labels, outputs, from_logits=self.student_from_logits
            )
        if self.pad_token is None:
            return ops.mean(losses)
        counted = ops.not_equal(ops.cast(y, "int32"), self.pad_token)
        # No product: what stands at padding may be infinite.
        total = ops.sum(ops.where(counted, losses, 0.0))
        return total / ops.maximum(ops.sum(ops.cast(counted, total.dtype)), 1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "mode": self.mode,
            "beam": self.beam,
            "pad_token": self.pad_token,
            "end_token": self.end_token,
        }
