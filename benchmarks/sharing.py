"""Shared weights and the archive: how small, how exact, how fast to read, how hard to break.

    python benchmarks/sharing.py [--seeds 5] [--only deep soft hashed decode fuzz layers]

Size is that of the .kcz file against 4 bytes for each parameter of the float model; accuracy is
that of the model that is read back from the file. Trainings take one thread. A result is kept as
soon as it is there; parts, networks and seeds that a run leaves out are those of an earlier one.
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
# Trainings do not get faster by more: two networks side by side do.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
from common import Results, publish
from pruning import BATCH, compiled, fit, lenet5, lenet300, mean_change

import keras_compress as kc
from keras_compress.export.archive_format import KINDS, Cursor
from keras_compress.export.archive_weights import decode, encode
from keras_compress.tables import Table

# The mutations that the tests use.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from tests.export.archive_mutations import mutation

PARTS = ("deep", "soft", "hashed", "decode", "fuzz", "layers")
NETWORKS = {"LeNet-300-100": lenet300, "LeNet-5": lenet5}
EPOCHS = 20


def accuracy(model, data):
    return model.evaluate(*data, verbose=0, return_dict=True)["accuracy"]


def trained(build, seed, train):
    keras.utils.set_random_seed(seed)
    return compiled(fit(build(), train, EPOCHS, 1e-3), 1e-3)


def archived(model, result, test):
    """Size and accuracy of `result`, a small form of `model`, once it has been in a file."""
    with tempfile.TemporaryDirectory() as folder:
        archive = kc.export.save_archive(result, pathlib.Path(folder, "model.kcz"))
        again = compiled(kc.export.load_archive(archive.path), 1e-3)
    return {
        "accuracy": (accuracy(model, test), accuracy(again, test)),
        "smaller": 4 * model.count_params() / archive.nbytes,
    }


# Deep Compression.

#: Sparsity of each layer (more than the paper's in the large ones), bits of convolutions, times
#: smaller asked for.
DEEP = {
    "LeNet-300-100": ({"fc1": 0.94, "fc2": 0.92, "predictions": 0.75}, 8, 40),
    "LeNet-5": ({"conv1": 0.4, "conv2": 0.88, "fc1": 0.94, "predictions": 0.8}, 8, 39),
}


class Cosine(keras.callbacks.Callback):
    """Learning rates from `rate` down to zero over the epochs of a fit, less for shared values."""

    def __init__(self, rate=1e-3, shared_rate=3e-4):
        super().__init__()
        self.rates = rate, shared_rate

    def on_epoch_begin(self, epoch, logs=None):
        shared = any(hasattr(layer, "codebook") for layer in self.model.layers)
        turn = math.pi * epoch / self.params["epochs"]
        self.model.optimizer.learning_rate = self.rates[shared] * (1 + math.cos(turn)) / 2


def deep(name, seed):
    """Prunes, shares, fine-tunes: 30 epochs and 15."""
    sparsity, conv_bits, _ = DEEP[name]
    train, test = kc.datasets.glyphs()
    model = trained(NETWORKS[name], seed, train)
    result = kc.sharing.deep_compress(
        model,
        sparsity,
        conv_bits,
        dense_bits=5,
        data=train,
        epochs=30,
        share_epochs=15,
        batch_size=BATCH,
        callbacks=[Cosine()],
        verbose=0,
    )
    print(result)
    return archived(model, result.model, test)


# Soft weight-sharing.

#: Epochs under the prior, factor of its penalty, times smaller asked for.
SOFT = {"LeNet-300-100": (60, 0.03, 64), "LeNet-5": (40, 0.02, 100)}


def soft(name, seed):
    """Retrains under a mixture prior, sets the weights to its means, fine-tunes shared values."""
    epochs, tau, _ = SOFT[name]
    train, test = kc.datasets.glyphs()
    model = trained(NETWORKS[name], seed, train)
    student = keras.models.clone_model(model)
    student.set_weights(model.get_weights())
    batch = 256
    steps = epochs * -(-len(train[0]) // batch)
    compiled(student, keras.optimizers.schedules.CosineDecay(2e-3, steps))
    # A precision that the hyper-prior lets grow: with the default, what is left of the weights at
    # zero carries part of the function, which is lost when they are set to it.
    prior = kc.regularizers.SoftWeightSharing(
        tau=tau, examples=len(train[0]), zero_precision=(5e3, 0.05)
    )
    sharing = kc.callbacks.SoftWeightSharing(prior, None, 3e-4, 5e-3)
    student.fit(*train, batch_size=batch, epochs=epochs, callbacks=[sharing], verbose=0)
    quantized = kc.sharing.quantize_mixture(student, prior)
    # The reference stops here.
    untuned = archived(model, quantized, test)
    tuned = fit(kc.convert(quantized, {has_kernel: coded_exactly}), train, 10, 3e-4)
    return {**archived(model, tuned, test), "untuned": untuned}


def has_kernel(layer):
    return type(layer) in (keras.layers.Dense, keras.layers.Conv2D)


def coded_exactly(layer):
    """The layer with a codebook of all values that its kernel has, zero for good."""
    forms = {
        keras.layers.Dense: kc.layers.CodebookDense,
        keras.layers.Conv2D: kc.layers.CodebookConv2D,
    }
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    count = max(2, len(np.unique(kernel)))
    coded = forms[type(layer)].from_layer(
        layer, k=count, init="kmeans++", keep_zero=bool((kernel == 0).any())
    )
    np.testing.assert_array_equal(coded.codebook().decode(), kernel)
    return coded


# HashedNets.

HASHED = {"1/8": 1 / 8, "1/64": 1 / 64}


def perceptron(layer, hidden, **options):
    """The reference's net with one hidden layer."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            layer(hidden, activation="relu", **options),
            layer(10, **options),
        ]
    )


def hashed(size, seed):
    """1,000 hidden units, hashed; and a dense net with no fewer parameters."""
    train, test = kc.datasets.glyphs()
    found = {}
    for name in ("dense", "hashed"):
        keras.utils.set_random_seed(seed)
        model = perceptron(kc.layers.HashedDense, 1000, compression=HASHED[size])
        if name == "dense":
            # Parameters for each hidden unit, and the biases of the classes.
            hidden = math.ceil((model.count_params() - 10) / (784 + 1 + 10))
            model = perceptron(keras.layers.Dense, hidden)
        fit(model, train, EPOCHS, 2e-3)
        found[name] = {"parameters": model.count_params(), "accuracy": accuracy(model, test)}
    return found


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


# Compact in a .tflite.


def dense(layer, **options):
    return (1024,), lambda: layer(1024, **options)


def conv(layer, **options):
    return (14, 14, 256), lambda: layer(256, 3, padding="same", **options)


def coded_dense(**options):
    layer = kc.layers.CodebookDense
    return (1024,), lambda: layer.from_layer(built(keras.layers.Dense(1024), (1024,)), **options)


def coded_conv(**options):
    layer, stock = kc.layers.CodebookConv2D, keras.layers.Conv2D(256, 3, padding="same")
    return (14, 14, 256), lambda: layer.from_layer(built(stock, (14, 14, 256)), **options)


def built(layer, shape):
    layer.build((None, *shape))
    return layer


#: Dense 1024 to 1024 and 3x3 convolutions 256 to 256.
COMPACT = {
    "HashedDense 1/8": dense(kc.layers.HashedDense, compression=1 / 8),
    "HashedDense 1/64": dense(kc.layers.HashedDense, compression=1 / 64),
    "HashedConv2D 1/64": conv(kc.layers.HashedConv2D, compression=1 / 64),
    "CodebookDense, 16 values": coded_dense(bits=4),
    "CodebookDense, 32 values": coded_dense(bits=5),
    "CodebookDense, product quantisation": coded_dense(method="pq", segment=4, k=16),
    "CodebookConv2D, 16 values": coded_conv(bits=4),
    "CirculantDense": dense(kc.layers.CirculantDense),
    "CirculantDense, blocks of 64": dense(kc.layers.CirculantDense, block_size=64),
    "ToeplitzLikeDense, rank 2": dense(kc.layers.ToeplitzLikeDense, rank=2),
    "TTDense, rank 8": dense(kc.layers.TTDense, rank=8),
    "TTConv2D, rank 8": conv(kc.layers.TTConv2D, rank=8),
}


def compact(name):
    """Bytes of a layer, and of the .tflite that holds nothing else."""
    shape, make = COMPACT[name]
    keras.utils.set_random_seed(0)
    layer = make()
    model = keras.Sequential([keras.Input(shape), layer])
    lite = kc.export.to_tflite(model, storage="compact", optimize_for="size")
    return {"stored": layer.storage_bits() / 8, "tflite": lite.nbytes}


def rows(results):
    table = []
    for part, asked, title, lost in (
        ("deep", {name: DEEP[name][-1] for name in DEEP}, "Deep Compression", 0.1),
        ("soft", {name: SOFT[name][-1] for name in SOFT}, "soft weight-sharing", 0.3),
    ):
        for name, seeds in results.get(part, {}).items():
            pairs = [r["accuracy"] for r in seeds.values()]
            smaller = min(r["smaller"] for r in seeds.values())
            figure = f"{smaller:.1f}x smaller; {mean_change(pairs)}"
            table.append([f"{title}, {name}", figure, f"{asked[name]}x, -{lost}"])
            untuned = [r["untuned"] for r in seeds.values() if "untuned" in r]
            if untuned:
                smaller = min(r["smaller"] for r in untuned)
                change = mean_change([r["accuracy"] for r in untuned])
                table.append(
                    [f"{title}, {name}, values as learned", f"{smaller:.1f}x smaller; {change}", ""]
                )
    for size, seeds in results.get("hashed", {}).items():
        pairs = [[r[form]["accuracy"] for form in ("dense", "hashed")] for r in seeds.values()]
        count = next(iter(seeds.values()))["hashed"]["parameters"]
        name = f"784-1000-10 hashed to {size}, against a dense net of {count:,} parameters"
        table.append([name, mean_change(pairs), "better"])
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
    for name, r in results.get("layers", {}).items():
        figure = f"{r['tflite']:,} bytes in the .tflite, {r['stored']:,.0f} of its own"
        table.append([name, figure, f"{1.15 * r['stored'] + 8192:,.0f} bytes"])
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--print-only", action="store_true", help="leave all files as they are")
    options = parser.parse_args()
    results = Results("sharing", keep=not options.print_only)
    if "decode" in options.only:
        results.put(decoding(options.runs), "decode")
    if "layers" in options.only:
        results.put({name: compact(name) for name in COMPACT}, "layers")
    if "fuzz" in options.only:
        results.put(fuzzing(options.mutations), "fuzz")
    for part, measure, names in (
        ("hashed", hashed, HASHED),
        ("deep", deep, options.networks),
        ("soft", soft, options.networks),
    ):
        for name in names if part in options.only else ():
            for seed in range(options.first, options.first + options.seeds):
                results.put(measure(name, seed), part, name, str(seed))
                print(part, name, seed, results.all[part][name][str(seed)], flush=True)
    table = Table(["what", "measured", "asked"], rows(results.all), align="<<<")
    if options.print_only:
        print(table.to_text())
        return
    publish(
        "sharing",
        table,
        results.all,
        "python benchmarks/sharing.py",
        "Accuracy on the 28x28 glyphs of `kc.datasets` (not MNIST; test pictures are of fonts that "
        "no training picture uses, and nets that are pruned may do better than before): before, "
        f"after {EPOCHS} epochs that end at a loss near 0, and after, mean of the seeds, in "
        "brackets the mean change in points and its spread (largest less smallest). Smaller: the "
        ".kcz against 4 bytes a parameter, the least of the seeds. Soft weight-sharing: shared "
        "values are fine-tuned for 10 epochs, which the paper does not do; 'values as learned' is "
        "without. Hashed nets: from the dense net's accuracy to the hashed one's. Bytes of layers: "
        '`storage="compact", optimize_for="size"`; hashed values are int8 there.',
    )


if __name__ == "__main__":
    main()
