"""Shared weights and the archive: how small, how exact, how fast to read, how hard to break.

    python benchmarks/sharing.py [--seeds 5] [--mutations 10000] [--only deep decode fuzz]

Size is that of the .kcz file against 4 bytes for each parameter of the float model; accuracy is
that of the model that is read back from the file.
"""

import argparse
import collections
import math
import os
import pathlib
import resource
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import publish
from pruning import BATCH, compiled, fit, lenet5, lenet300

import keras_compress as kc
from keras_compress.export.archive_format import KINDS, Cursor
from keras_compress.export.archive_weights import decode, encode
from keras_compress.tables import Table

# The mutations that the tests use.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from tests.export.archive_mutations import mutation

#: Name: network, sparsity of each layer (more than the paper's in the large ones), bits of
#: convolutions and dense layers, times smaller asked for.
NETWORKS = {
    "LeNet-300-100": (lenet300, {"fc1": 0.94, "fc2": 0.92, "logits": 0.75}, 6, 40),
    "LeNet-5": (lenet5, {"conv1": 0.4, "conv2": 0.88, "fc1": 0.94, "logits": 0.8}, 8, 39),
}
DENSE_BITS = 5


# Deep Compression.


class Cosine(keras.callbacks.Callback):
    """Learning rates from `rate` down to zero over the epochs of a fit, less for shared values."""

    def __init__(self, rate=1e-3, shared_rate=3e-4):
        super().__init__()
        self.rates = rate, shared_rate

    def on_epoch_begin(self, epoch, logs=None):
        shared = any(hasattr(layer, "codebook") for layer in self.model.layers)
        turn = math.pi * epoch / self.params["epochs"]
        self.model.optimizer.learning_rate = self.rates[shared] * (1 + math.cos(turn)) / 2


def deep(name, seeds, epochs, tuning, sharing):
    """Trains, compresses, saves, reads again."""
    build, sparsity, conv_bits, asked = NETWORKS[name]
    (x, y), test = kc.datasets.glyphs()
    accuracies, ratios, report = [], [], None
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = compiled(fit(build(), (x, y), epochs, 1e-3), 1e-3)
        before = model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
        result = kc.sharing.deep_compress(
            model,
            sparsity,
            conv_bits,
            DENSE_BITS,
            (x, y),
            epochs=tuning,
            share_epochs=sharing,
            batch_size=BATCH,
            callbacks=[Cosine()],
            verbose=0,
        )
        with tempfile.TemporaryDirectory() as folder:
            archive = result.save(pathlib.Path(folder, "model.kcz"))
            again = compiled(kc.export.load_archive(archive.path), 1e-3)
        after = again.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
        accuracies.append((before, after))
        ratios.append(4 * model.count_params() / archive.nbytes)
        report = f"{result}\n{archive}"
    print(report)
    return {"what": name, "accuracy": accuracies, "smaller": ratios, "asked": asked}


# Reading.


def decoding(runs, size=2048):
    """MB of float32 weights a second, by what an archive holds."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=256).astype("float32")
    near = np.clip(np.round(rng.normal(size=(size, size)) * 30 + 128), 0, 255).astype(int)
    kept = rng.random((size, size)) < 0.08
    kernels = {
        "8 % kept, codes of 5 bits": np.where(kept, values[near // 8], 0),
        "all kept, codes of 5 bits": values[near // 8],
        "all kept, codes of 8 bits": values[near],
        "random floats": rng.normal(size=(size, size)),
    }
    rows = {}
    for name, kernel in kernels.items():
        kernel = kernel.astype("float32")
        form = encode(kernel)
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            found = decode(form.kind, Cursor(form.payload, name), kernel.shape, kernel.dtype)
            seconds.append(time.perf_counter() - start)
        assert found.tobytes() == kernel.tobytes()
        rows[name] = {
            "kind": KINDS[form.kind],
            "smaller": kernel.nbytes / len(form.payload),
            "megabytes_per_second": kernel.nbytes / float(np.median(seconds)) / 1e6,
        }
    return rows


# Breaking.


def fuzzing(mutations):
    """What becomes of so many damaged and hostile files."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(20, activation="relu", name="hidden"),
            kc.layers.CirculantDense(12),
            keras.layers.Dense(3),
        ]
    )
    small = kc.sharing.deep_compress(
        model, {"hidden": 0.9}, 3, 3, layers=["conv", "hidden"], epochs=0, share_epochs=0
    )
    rng, outcomes, longest = np.random.default_rng(0), collections.Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.kcz")
        content = small.save(path).path.read_bytes()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(mutations):
            path.write_bytes(mutation(content, rng))
            start = time.perf_counter()
            try:
                kc.export.load_archive(path)
            except kc.export.ArchiveError:
                outcomes["refused"] += 1
            except Exception as error:
                outcomes["crashed"] += 1
                print(f"mutation {number}: {type(error).__name__}: {error}")
            else:
                outcomes["loaded"] += 1
            longest = max(longest, time.perf_counter() - start)
            # Keras counts names of layers and keeps what it compiled.
            if number % 500 == 0:
                keras.backend.clear_session()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    return {**outcomes, "mutations": mutations, "longest": longest, "megabytes": grown / 1024}


def rows(results):
    table = []
    for r in results.get("deep", []):
        before, after = 100 * np.array(r["accuracy"]).T
        spread = np.ptp(after - before)
        change = f"{before.mean():.2f} to {after.mean():.2f} %"
        table.append(
            [
                f"Deep Compression, {r['what']}",
                f"{np.mean(r['smaller']):.1f}x smaller; {change} "
                f"({np.mean(after - before):+.2f}, {spread:.2f})",
                f"{r['asked']}x, -0.1",
            ]
        )
    for name, r in results.get("decode", {}).items():
        figure = f"{r['megabytes_per_second']:.0f} MB/s ({r['kind']}, {r['smaller']:.1f}x smaller)"
        table.append([f"read: {name}", figure, "50 MB/s"])
    if "fuzz" in results:
        r = results["fuzz"]
        figure = (
            f"{r.get('refused', 0)} refused, {r.get('loaded', 0)} loaded, {r.get('crashed', 0)} "
            f"crashed; longest {r['longest']:.1f} s, {r['megabytes']:.0f} MB more memory"
        )
        table.append([f"{r['mutations']:,} damaged and hostile archives", figure, "0 crashed"])
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, nargs=3, default=[20, 30, 15], metavar="N")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--only", nargs="+", default=["deep", "decode", "fuzz"])
    parser.add_argument("--print-only", action="store_true", help="leave README.md as it is")
    options = parser.parse_args()
    results = {}
    if "decode" in options.only:
        results["decode"] = decoding(options.runs)
    if "fuzz" in options.only:
        results["fuzz"] = fuzzing(options.mutations)
    if "deep" in options.only:
        results["deep"] = [deep(n, options.seeds, *options.epochs) for n in options.networks]
    table = Table(["what", "measured", "asked"], rows(results), align="<<<")
    if options.print_only:
        print(table.to_text())
        return
    publish(
        "sharing",
        table,
        results,
        "python benchmarks/sharing.py",
        "28x28 glyphs of `kc.datasets`. Accuracy before and after, mean of the seeds, in brackets "
        "the mean change in points and its spread (largest less smallest).",
    )


if __name__ == "__main__":
    main()
