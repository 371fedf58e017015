"""One compiled training step of a compressed layer against Dense, in turn, in one run.

    python benchmarks/train_step.py [--runs 15]

4096 to 4096, batch 32, TensorFlow backend; both optimizers.
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

SIZE, BATCH = 4096, 32
LAYERS = {
    "TTDense (8,8,8,8)x(8,8,8,8) rank 8": lambda: kc.layers.TTDense(
        SIZE, input_modes=(8,) * 4, output_modes=(8,) * 4, rank=8
    ),
    "CirculantDense block 128": lambda: kc.layers.CirculantDense(SIZE, block_size=128),
    "CirculantDense full": lambda: kc.layers.CirculantDense(SIZE),
    "HashedDense 1/64": lambda: kc.layers.HashedDense(SIZE, compression=1 / 64),
    "FactorizedDense rank 128": lambda: kc.layers.FactorizedDense(SIZE, rank=128),
}


def stepper(layer, optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((SIZE,)), layer()])
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(BATCH, SIZE)).astype("float32") for _ in range(2))

    def step():
        start = time.perf_counter()
        model.train_on_batch(x, y)
        return time.perf_counter() - start

    for _ in range(3):
        step()
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    results = []
    for optimizer in ("sgd", "adam"):
        dense = stepper(lambda: keras.layers.Dense(SIZE), optimizer)
        for name, layer in LAYERS.items():
            step = stepper(layer, optimizer)
            times = np.array([[dense(), step()] for _ in range(options.runs)])
            ratios = times[:, 1] / times[:, 0]
            results.append(
                {
                    "layer": name,
                    "optimizer": optimizer,
                    "dense_ms": float(np.median(times[:, 0]) * 1e3),
                    "ms": float(np.median(times[:, 1]) * 1e3),
                    "ratio": float(np.median(ratios)),
                    "ratio_quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
                }
            )
            print(results[-1], flush=True)
    rows = [
        [
            r["layer"],
            r["optimizer"],
            f"{r['dense_ms']:.0f}",
            f"{r['ms']:.0f}",
            f"{r['ratio']:.2f} ({r['ratio_quartiles'][0]:.2f} to {r['ratio_quartiles'][1]:.2f})",
        ]
        for r in results
    ]
    publish(
        "train_step",
        Table(["layer", "optimizer", "Dense ms", "ms", "ratio (quartiles)"], rows),
        results,
        "python benchmarks/train_step.py",
        f"`train_on_batch` of one layer 4096 to 4096, batch {BATCH}, median of {options.runs} "
        "paired steps; asked: no slower than Dense for TTDense and CirculantDense.",
    )


if __name__ == "__main__":
    main()
