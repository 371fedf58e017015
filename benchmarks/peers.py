"""The same networks, compressed by keras_compress and by tensorflow-model-optimization (tfmot).

    python benchmarks/peers.py [--seeds 3] [--runs 30]

LeNet-300-100 and a small CNN on `kc.datasets.glyphs`, trained to convergence in Keras 3; from these
weights each tool goes on in its own Keras (tfmot knows only tf_keras) with the same batches,
optimizer and schedule. The tools train in turn, an epoch each, in one process. Needs
`pip install -e ".[tfmot]"`, best in an environment of its own: tfmot wants an old absl-py.
"""

import argparse
import itertools
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from common import machine, publish

import keras_compress as kc
from keras_compress.export import LiteModel, time_together
from keras_compress.tables import Table

try:
    import tensorflow_model_optimization as tfmot
    import tf_keras
except ImportError as error:
    raise SystemExit(
        f'peers.py: {error}. Install tfmot beside us: pip install -e ".[tfmot]" (in an environment '
        "of its own, if the one you have must keep its absl-py)."
    ) from error

# Each epoch is a fit() of its own here, none of which reaches the end of the schedule alone.
warnings.filterwarnings("ignore", "The pruning schedule ends at step")

BATCH = 64
SPARSITY, CLUSTERS = 0.8, 16


def lenet(k):
    """LeNet-300-100 in the Keras `k`: Keras 3 or tf_keras."""
    return k.Sequential(
        [
            k.layers.Input((28, 28, 1)),
            k.layers.Flatten(),
            k.layers.Dense(300, activation="relu"),
            k.layers.Dense(100, activation="relu"),
            k.layers.Dense(10),
        ]
    )


def cnn(k):
    """Two convolutions and two dense layers in the Keras `k`."""
    return k.Sequential(
        [
            k.layers.Input((28, 28, 1)),
            k.layers.Conv2D(16, 3, activation="relu"),
            k.layers.MaxPooling2D(),
            k.layers.Conv2D(32, 3, activation="relu"),
            k.layers.MaxPooling2D(),
            k.layers.Flatten(),
            k.layers.Dense(64, activation="relu"),
            k.layers.Dense(10),
        ]
    )


#: name -> (network, epochs of float training, epochs of compression)
NETWORKS = {"LeNet-300-100": (lenet, 12, 5), "small CNN": (cnn, 8, 5)}


def compiled(k, model):
    model.compile(
        k.optimizers.Adam(1e-3),
        k.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tf_keras_to_tflite(model, optimizations=()):
    """The .tflite of a tf_keras model, batch 1: what our exporter also makes."""
    function = tf.function(lambda x: model(x, training=False))
    spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function(spec)], model
    )
    converter.optimizations = list(optimizations)
    return LiteModel(converter.convert())


class Arm:
    """One tool's training of one network, an epoch at a time.

    Args:
        network: Function that makes the network in a Keras.
        weights: Arrays to start from.
        steps: Training steps in all epochs.
    """

    k = keras

    def __init__(self, network, weights, steps):
        model = network(self.k)
        model.set_weights(weights)
        self.network = network
        self.callbacks = []
        self.model = compiled(self.k, self.prepare(model, steps))

    def prepare(self, model, steps):
        """Puts the method into the model; may add callbacks."""
        return model

    def epoch(self, data, number):
        """Trains one epoch; returns the seconds of a step, `(wall clock, CPU)`."""
        start = np.array([time.perf_counter(), time.process_time()])
        self.model.fit(
            data,
            initial_epoch=number,
            epochs=number + 1,
            shuffle=False,
            verbose=0,
            callbacks=self.callbacks,
        )
        return (np.array([time.perf_counter(), time.process_time()]) - start) / len(data)

    def exports(self):
        """Dict from a name to the `LiteModel` of each way to export the trained model."""
        raise NotImplementedError


class PlainKeras(Arm):
    method, tool = "none", "Keras 3"

    def exports(self):
        return {self.tool: kc.export.to_tflite(self.model)}


class PlainTfKeras(Arm):
    method, tool = "none", "tf_keras"
    k = tf_keras

    def exports(self):
        return {self.tool: tf_keras_to_tflite(self.model)}


class OurPruning(Arm):
    method, tool = f"{SPARSITY:.0%} pruned", "keras_compress"

    def prepare(self, model, steps):
        schedule = kc.pruning.PolynomialDecay(**decay(steps))
        self.callbacks.append(kc.callbacks.MagnitudePruning(schedule))
        return model

    def exports(self):
        return {self.tool: kc.export.to_tflite(kc.pruning.strip(self.model))}


class TfmotPruning(Arm):
    method, tool = f"{SPARSITY:.0%} pruned", "tfmot"
    k = tf_keras

    def prepare(self, model, steps):
        sparsity = tfmot.sparsity.keras
        self.callbacks.append(sparsity.UpdatePruningStep())
        return sparsity.prune_low_magnitude(model, sparsity.PolynomialDecay(**decay(steps)))

    def exports(self):
        model = tfmot.sparsity.keras.strip_pruning(self.model)
        sparse = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
        return {
            self.tool: tf_keras_to_tflite(model),
            "tfmot, EXPERIMENTAL_SPARSITY": tf_keras_to_tflite(model, sparse),
        }


class TfmotClustering(Arm):
    method, tool = f"{CLUSTERS} clusters", "tfmot"
    k = tf_keras

    def prepare(self, model, steps):
        clustering = tfmot.clustering.keras
        return clustering.cluster_weights(
            model,
            number_of_clusters=CLUSTERS,
            cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
        )

    def exports(self):
        model = tfmot.clustering.keras.strip_clustering(self.model)
        ours = self.network(keras)
        ours.set_weights(model.get_weights())
        return {
            self.tool: tf_keras_to_tflite(model),
            "tfmot's weights in keras_compress, compact": kc.export.to_tflite(
                ours, storage="compact"
            ),
        }


class TfmotQat(Arm):
    method, tool = "int8 QAT", "tfmot"
    k = tf_keras

    def prepare(self, model, steps):
        return tfmot.quantization.keras.quantize_model(model)

    def exports(self):
        return {self.tool: tf_keras_to_tflite(self.model, [tf.lite.Optimize.DEFAULT])}


ARMS = (PlainKeras, PlainTfKeras, OurPruning, TfmotPruning, TfmotClustering, TfmotQat)


def decay(steps):
    """Arguments of PolynomialDecay, of the same names in both tools."""
    return {
        "initial_sparsity": 0.0,
        "final_sparsity": SPARSITY,
        "begin_step": 0,
        "end_step": steps * 2 // 3,
        "power": 3,
        "frequency": 100,
    }


def batches(x, y, rng):
    """A `tf.data.Dataset` of one epoch in an order of its own, in memory."""
    order = rng.permutation(len(x))
    data = tf.data.Dataset.from_tensor_slices((x[order], y[order]))
    # The end of an epoch waits for the autotuner, which looks up only after 10, 30, 70, ... 630,
    # 1270 ms: times of epochs would be rounded up to these.
    settings = tf.data.Options()
    settings.autotune.enabled = False
    data = data.batch(BATCH, drop_remainder=True).cache().prefetch(4).with_options(settings)
    for _ in data:
        pass
    return data


def train(network, arms, epochs, seed, data):
    """Trains from one seed; returns the arms with `Arm.epoch` of all epochs, `{arm: [...]}`."""
    (x, y), _ = data
    before, after = epochs
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    start = compiled(keras, network(keras))
    for _ in range(before):
        start.fit(batches(x, y, rng), shuffle=False, verbose=0)
    steps = len(x) // BATCH * after
    arms = [arm(network, start.get_weights(), steps) for arm in arms]
    seconds = {arm: [] for arm in arms}
    for number in range(after):
        epoch = batches(x, y, rng)
        # Each goes first now and then: what follows a pause is slower.
        turn = number % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            seconds[arm].append(arm.epoch(epoch, number))
    return seconds


def accuracy(lite, data):
    x, y = data
    interpreter = lite.interpreter()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    right = 0
    for image, label in zip(x, y, strict=True):
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        right += interpreter.get_tensor(target)[0].argmax() == label
    return float(right / len(y))


def measure(name, options, data):
    network, *epochs = NETWORKS[name]
    rows, times, timed = {}, {}, {}
    for seed in range(options.seeds):
        for arm, seconds in train(network, options.arms, epochs, seed, data).items():
            # The first epoch traces and compiles.
            times.setdefault(type(arm), []).extend(seconds[1:])
            for tool, lite in arm.exports().items():
                row = rows.setdefault((arm.method, tool), {"arm": type(arm), "seeds": []})
                row["seeds"].append((accuracy(lite, data[1]), lite.nbytes, lite.gzip_bytes))
                timed.setdefault((arm.method, tool), lite)
        done = {
            f"{a.tool}, {a.method}": np.round(np.median(t, 0) * 1e3, 2) for a, t in times.items()
        }
        print(name, "seed", seed, "ms of wall clock and CPU a step:", done, flush=True)
    timing = time_together(list(timed.values()), runs=options.runs)
    speed = dict(zip(timed, zip(timing.microseconds, timing.speedups, strict=True), strict=True))
    results = []
    for (method, tool), row in rows.items():
        accuracies, nbytes, gzipped = np.array(row["seeds"]).T
        arm = row["arm"]
        # One training has one step time: it stands in the row of the tool that trained.
        trained = tool == arm.tool
        results.append(
            {
                "network": name,
                "method": method,
                "tool": tool,
                "accuracy": float(accuracies.mean()),
                "accuracies": accuracies.tolist(),
                "tflite_bytes": int(np.median(nbytes)),
                "gzip_bytes": int(np.median(gzipped)),
                "microseconds": speed[method, tool][0],
                "faster": speed[method, tool][1],
                "step_ms": float(np.median(times[arm], axis=0)[0] * 1e3) if trained else None,
                "step_cpu_ms": float(np.median(times[arm], axis=0)[1] * 1e3) if trained else None,
                "step_over": step_ratios(times, arm, 0) if trained else {},
                "step_cpu_over": step_ratios(times, arm, 1) if trained else {},
            }
        )
    return results


def step_ratios(times, arm, clock):
    """Median and quartiles of the paired ratio of step times to each other tool's step."""
    ours = np.array(times[arm])[:, clock]
    return {
        f"{other.method}, {other.tool}": np.quantile(
            ours / np.array(theirs)[:, clock], [0.5, 0.25, 0.75]
        ).tolist()
        for other, theirs in times.items()
        if other is not arm
    }


def row(result):
    plain = "none, Keras 3" if result["tool"] == "keras_compress" else "none, tf_keras"
    spread = max(result["accuracies"]) - min(result["accuracies"])
    over_plain = result["step_over"].get(plain) if result["method"] != "none" else None
    over_tfmot = result["step_over"].get(f"{result['method']}, tfmot")
    return [
        result["network"],
        result["method"],
        result["tool"],
        f"{result['accuracy']:.2%} ({spread:.2%})",
        f"{result['tflite_bytes']:,}",
        f"{result['gzip_bytes']:,}",
        f"{result['microseconds']:,.0f}",
        f"{result['faster']:.2f}x",
        "" if result["step_ms"] is None else f"{result['step_ms']:.2f}",
        ratio(over_plain),
        ratio(over_tfmot),
    ]


def ratio(quartiles):
    if quartiles is None:
        return ""
    middle, low, high = quartiles
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


HEADER = [
    "network",
    "method",
    "tool",
    "accuracy (range)",
    ".tflite bytes",
    "gzip",
    "us",
    "faster",
    "step ms",
    "step over plain",
    "step over tfmot",
]


def verdict(results):
    """The figures that issue 3 asks for, as a sentence."""
    method = OurPruning.method
    by_tool = {
        r["tool"]: r
        for r in results
        if r["method"] == method and r["network"] == next(iter(NETWORKS))
    }
    if not {"keras_compress", "tfmot"} <= by_tool.keys():
        return ""
    ours, theirs = by_tool["keras_compress"], by_tool["tfmot"]
    gzip = ours["gzip_bytes"] / theirs["gzip_bytes"]
    smaller = theirs["tflite_bytes"] / ours["tflite_bytes"]
    step, cpu = (ours[key][f"{method}, tfmot"][0] for key in ("step_over", "step_cpu_over"))
    return (
        f"{ours['network']}, {method}, against tfmot: gzip {gzip:.3f}x (asked: at most 1), .tflite "
        f"{smaller:.2f}x smaller (asked: 3), step {step:.2f}x (asked: at most 0.65; "
        f"{cpu:.2f}x in CPU time), accuracy "
        f"{ours['accuracy'] - theirs['accuracy']:+.2%}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=30, help="timed rounds of the exported models")
    parser.add_argument("--train", type=int, default=10000, help="training pictures")
    parser.add_argument("--test", type=int, default=2000, help="test pictures")
    parser.add_argument("--only", default="", help="part of a network's name; none is published")
    parser.add_argument("--method", default="", help="part of a method's name; likewise")
    options = parser.parse_args()
    print(machine() | {"tfmot": tfmot.__version__, "tf_keras": tf_keras.__version__}, flush=True)
    options.arms = [arm for arm in ARMS if arm.method == "none" or options.method in arm.method]
    data = kc.datasets.glyphs(train=options.train, test=options.test)
    names = [name for name in NETWORKS if options.only in name]
    results = list(itertools.chain.from_iterable(measure(name, options, data) for name in names))
    # What the issue asks about stands first.
    results.sort(key=lambda r: (names.index(r["network"]), r["method"] != OurPruning.method))
    table = Table(HEADER, [row(result) for result in results], align="<<<>>>>>>>>")
    if options.only or options.method:
        print(table.to_text(), verdict(results), sep="\n")
        return
    publish(
        "peers",
        table,
        results,
        "python benchmarks/peers.py",
        f"tfmot {tfmot.__version__} on tf_keras {tf_keras.__version__}. Data: "
        f"`kc.datasets.glyphs(train={options.train}, test={options.test})`; accuracy of the "
        f".tflite, mean (largest less smallest) of {options.seeds} seeds. `faster`: than the "
        "uncompressed float32 export of Keras 3, LiteRT, batch 1, one thread, median of "
        f"{options.runs} paired rounds. Step times: of `fit`, batch {BATCH}, median (quartiles) of "
        "paired epochs; `step over plain` is to the same Keras without compression.\n\n"
        f"{verdict(results)}",
    )


if __name__ == "__main__":
    main()
