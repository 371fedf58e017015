"""Training time under MagnitudePruning against plain training, epoch by epoch in turn.

    python benchmarks/pruning_step.py [--runs 11]

LeNet-300-100, batch 64, Adam, TensorFlow backend; an epoch is 938 steps, as many as MNIST has.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import publish

import keras_compress as kc
from keras_compress.tables import Table

STEPS, BATCH = 938, 64

#: name -> (options of the callback, steps between two updates of the masks)
CASES = {
    "weights, masks every 100 steps": ({}, 100),
    "weights, masks every 10 steps": ({}, 10),
    "2:4, masks every 100 steps": ({"granularity": "2:4"}, 100),
    "blocks of 4x4, masks every 100 steps": ({"granularity": "block", "block_size": (4, 4)}, 100),
}


class Trainer:
    """A model that trains one epoch at a time; `options` are those of the pruning callback."""

    def __init__(self, data, options=None, frequency=None, epochs=1):
        keras.utils.set_random_seed(0)
        self.model = kc.models.LeNet300100(classifier_activation=None)
        self.model.compile(
            "adam",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        self.callbacks = []
        if options is not None:
            # The whole measurement lies on the slope of the schedule, where masks change.
            schedule = kc.pruning.PolynomialDecay(
                0.0,
                0.5 if options.get("granularity") == "2:4" else 0.9,
                begin_step=0,
                end_step=STEPS * epochs,
                frequency=frequency,
            )
            self.callbacks = [kc.callbacks.MagnitudePruning(schedule, **options)]
        self.data = data

    def epoch(self):
        start = time.perf_counter()
        self.model.fit(self.data, shuffle=False, callbacks=self.callbacks, verbose=0)
        return (time.perf_counter() - start) / STEPS


def main():
    import tensorflow as tf

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * BATCH, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, STEPS * BATCH)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).cache().prefetch(4)
    # At the end of an epoch Keras waits for the autotuner's thread, whose naps are longer than
    # what is measured here.
    quiet = tf.data.Options()
    quiet.autotune.enabled = False
    data = data.with_options(quiet)
    results = []
    for name, (pruning, frequency) in CASES.items():
        plain = Trainer(data)
        pruned = Trainer(data, pruning, frequency, epochs=options.runs + 2)
        for trainer in (plain, pruned):
            trainer.epoch()
            trainer.epoch()
        pairs = []
        for run in range(options.runs):
            # Each goes first in half of the pairs: what follows a pause is slower.
            pair = [pruned.epoch(), plain.epoch()] if run % 2 else [plain.epoch(), pruned.epoch()]
            pairs.append(pair[::-1] if run % 2 else pair)
        times = np.array(pairs)
        ratios = times[:, 1] / times[:, 0]
        results.append(
            {
                "case": name,
                "plain_ms": float(np.median(times[:, 0]) * 1e3),
                "ms": float(np.median(times[:, 1]) * 1e3),
                "ratio": float(np.median(ratios)),
                "ratio_quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
            }
        )
        print(results[-1], flush=True)
    rows = [
        [
            r["case"],
            f"{r['plain_ms']:.2f}",
            f"{r['ms']:.2f}",
            f"{r['ratio']:.3f} ({r['ratio_quartiles'][0]:.3f} to {r['ratio_quartiles'][1]:.3f})",
        ]
        for r in results
    ]
    publish(
        "pruning_step",
        Table(["MagnitudePruning", "plain ms", "ms", "ratio (quartiles)"], rows),
        results,
        "python benchmarks/pruning_step.py",
        f"Time of one step inside `fit`, LeNet-300-100, batch {BATCH}, median of {options.runs} "
        "pairs of epochs; asked: at most 1.05.",
    )


if __name__ == "__main__":
    main()
