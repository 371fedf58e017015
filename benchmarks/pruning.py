"""Pruning: channels that are gone, weights that are zero, and what is left of the accuracy.

    python benchmarks/pruning.py [--runs 20] [--seeds 5] [--only channels weights saliency surgery]

LiteRT, batch 1, one thread; the models of a row run in turn in every round. Accuracy is that of the
.tflite on test images that no choice was made by.
"""

import argparse
import functools
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import FOLDER, publish
from keras import layers

import keras_compress as kc
from keras_compress.tables import Table

BATCH = 64


# Networks.


def vgg16(width=16, classes=10):
    """VGG-16's 13 convolutions, each a quarter as wide, with batch normalisation, for 32x32."""
    x = inputs = keras.Input((32, 32, 1))
    for block, (factor, depth) in enumerate([(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)], 1):
        for i in range(depth):
            x = layers.Conv2D(
                width * factor, 3, padding="same", use_bias=False, name=f"conv{block}_{i + 1}"
            )(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(width * 8, activation="relu", name="fc")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x))


def resnet20(width=16, classes=10):
    """ResNet-20 of CIFAR, projections where shapes change."""
    x = inputs = keras.Input((32, 32, 1))

    def conv(x, filters, size=3, strides=1):
        x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.ReLU()(conv(x, width))
    for stage in range(3):
        for block in range(3):
            filters, strides = width * 2**stage, 2 if stage and not block else 1
            y = layers.ReLU()(conv(x, filters, 3, strides))
            y = conv(y, filters)
            short = conv(x, filters, 1, strides) if strides > 1 else x
            x = layers.ReLU()(layers.Add()([y, short]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x))


#: They end in logits.
lenet300 = functools.partial(kc.models.LeNet300100, classifier_activation=None)
lenet5 = functools.partial(kc.models.LeNet5, classifier_activation=None)


def compiled(model, rate):
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def fit(model, data, epochs, rate, callbacks=()):
    x, y = data
    steps = epochs * -(-len(x) // BATCH)
    compiled(model, keras.optimizers.schedules.CosineDecay(rate, steps))
    model.fit(x, y, batch_size=BATCH, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model


def share(lite, data):
    return float(np.mean(lite.predict(data[0]).argmax(-1) == data[1]))


#: Name: the network, and the share of each layer's weights that goes: 92 % in all, as in the paper.
LENETS = {
    "LeNet-300-100": (lenet300, {"fc1": 0.92, "fc2": 0.91, "predictions": 0.74}),
    "LeNet-5": (lenet5, {"conv1": 0.34, "conv2": 0.88, "fc1": 0.925, "predictions": 0.81}),
}


# Channels.

#: Name: the network, MACs that stay, `round_to`, (points lost, times faster) asked for.
CHANNELS = {
    "VGG-16 style, 80 % of the MACs": (vgg16, 0.2, 4, (0.5, 4.0)),
    "ResNet-20, 50 % of the MACs": (resnet20, 0.5, 8, (0.5, 1.7)),
}


def channel_pair(build, target, round_to, seed, train, epochs=15, tuning=15):
    """A trained net, and what three rounds of pruning by Taylor scores and fine-tuning leave."""
    keras.utils.set_random_seed(seed)
    model = fit(build(), train, epochs, 2e-3)
    whole, pruned = kc.profile.macs(model), model
    for part in (1 / 3, 2 / 3, 1):
        left = target**part * whole / kc.profile.macs(pruned)
        pruned = kc.pruning.prune_channels(
            compiled(pruned, 1e-3),
            kc.pruning.criteria.Taylor(),
            kc.pruning.Budget(macs=left),
            (train[0][:512], train[1][:512]),
            round_to=round_to,
        )
        pruned = fit(pruned, train, tuning, 1e-3)
    return model, pruned


def channels(name, seeds, runs):
    build, target, round_to, asked = CHANNELS[name]
    train, test = kc.datasets.digits(size=32)
    accuracies, gains = [], []
    for seed in range(seeds):
        model, pruned = channel_pair(build, target, round_to, seed, train)
        plain, small = kc.export.to_tflite(model), kc.export.to_tflite(pruned)
        accuracies.append((share(plain, test), share(small, test)))
        gains.append(
            (
                kc.profile.macs(pruned) / kc.profile.macs(model),
                plain.benchmark(small, runs=runs).speedups[1],
                plain.nbytes / small.nbytes,
            )
        )
    macs, faster, smaller = np.median(gains, axis=0)
    result = {"what": name, "macs": macs, "faster": faster, "smaller": smaller}
    return {**result, "accuracy": accuracies, "asked": asked}


# Single weights.


def weights(name, seeds, epochs=20, tuning=30):
    """Han's pruning of LeNets on the 28x28 glyphs, gradually, with fine-tuning."""
    build, sparsities = LENETS[name]
    train, test = kc.datasets.glyphs()
    accuracies, sizes = [], None
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = fit(build(), train, epochs, 1e-3)
        pruned = keras.models.clone_model(model)
        pruned.set_weights(model.get_weights())
        steps = tuning * -(-len(train[0]) // BATCH)
        rules = {
            layer: kc.pruning.PolynomialDecay(
                sparsity / 2, sparsity, begin_step=0, end_step=steps // 2, frequency=100
            )
            for layer, sparsity in sparsities.items()
        }
        pruning = kc.callbacks.MagnitudePruning(rules["fc1"], rules=rules)
        pruned = fit(pruned, train, tuning, 1e-3, [pruning])
        pruned = kc.pruning.strip(pruned)
        plain, small = kc.export.to_tflite(model), kc.export.to_tflite(pruned)
        accuracies.append((share(plain, test), share(small, test)))
        sizes = (plain.nbytes, small.nbytes)
    return {"what": name, "accuracy": accuracies, "bytes": sizes, "asked": 0.1}


# Saliency.


def saliency(seeds, sparsities=(0.5, 0.7, 0.8)):
    """Rise of the loss when single weights go in one shot: globally, OBS by layer."""
    (x, y), _ = kc.datasets.digits()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rises = {s: {"magnitude": [], "OBD": [], "OBS": []} for s in sparsities}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                layers.Flatten(),
                layers.Dense(32, activation="tanh"),
                layers.Dense(10),
            ]
        )
        fit(model, (x, y), 40, 5e-3)
        whole = float(loss(y, model(x)))
        for s in sparsities:
            pruned = {
                "magnitude": kc.pruning.prune_weights(model, "magnitude", s, scope="global"),
                "OBD": kc.pruning.prune_weights(model, "obd", s, data=(x, y), scope="global"),
                "OBS": kc.pruning.obs_prune(model, s, (x, y)),
            }
            for name, other in pruned.items():
                rises[s][name].append(float(loss(y, other(x))) - whole)
    return rises


def filters(seeds):
    """Rise of the loss when 30 % of the filters go in one shot, by criterion."""
    train, _ = kc.datasets.digits()
    names = ("l1", "taylor", "apoz")
    rises = {name: [] for name in names}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        x = inputs = keras.Input(train[0].shape[1:])
        for i, filters_ in enumerate((16, 32)):
            x = layers.Conv2D(filters_, 3, padding="same", activation="relu", name=f"c{i}")(x)
            x = layers.MaxPooling2D()(x)
        model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
        fit(model, train, 40, 3e-3)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        whole = float(loss(train[1], model(train[0])))
        for name in names:
            small = kc.pruning.prune_channels(model, name, 0.3, train, scope="layer")
            rises[name].append(float(loss(train[1], small(train[0]))) - whole)
    return rises


# Surgery.


def surgery():
    """Seconds of `prune_channels` without data."""
    seconds = {}
    for name in ("ResNet50", "MobileNetV2"):
        model = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
        start = time.perf_counter()
        kc.pruning.prune_channels(model, "l1", kc.pruning.Budget(macs=0.5))
        seconds[name] = {"seconds": time.perf_counter() - start, "layers": len(model.layers)}
    return seconds


def mean_change(pairs):
    before, after = 100 * np.array(pairs).T
    spread = np.ptp(after - before)
    change = (after - before).mean()
    figure = f"{before.mean():.2f} to {after.mean():.2f} % ({change:+.2f}, {spread:.2f})"
    return f"{figure}, {len(pairs)} seed{'s' if len(pairs) > 1 else ''}"


def rows(results):
    table = []
    for r in results.get("channels", []):
        figure = (
            f"{mean_change(r['accuracy'])}; {r['faster']:.2f}x faster, {r['smaller']:.1f}x smaller"
        )
        asked = f"-{r['asked'][0]}, {r['asked'][1]}x faster"
        table.append([f"{r['what']} gone" if "80" in r["what"] else r["what"], figure, asked])
    for r in results.get("weights", []):
        smaller = r["bytes"][0] / r["bytes"][1]
        figure = f"{mean_change(r['accuracy'])}; {smaller:.1f}x smaller"
        table.append([f"{r['what']}, 92 % of the weights gone", figure, f"-{r['asked']}"])
    for s, rises in results.get("saliency", {}).items():
        figure = ", ".join(f"{name} {np.mean(v):.3f}" for name, v in rises.items())
        table.append(
            [f"rise of the loss, {float(s):.0%} of weights", figure, "OBS < OBD < magnitude"]
        )
    if "filters" in results:
        figure = ", ".join(f"{name} {np.mean(v):.3f}" for name, v in results["filters"].items())
        table.append(["rise of the loss, 30 % of filters", figure, "Taylor < magnitude"])
    for name, r in results.get("surgery", {}).items():
        figure = f"{r['seconds']:.1f} s ({r['layers']} layers)"
        table.append([f"`prune_channels` on {name}, no data", figure, "under 30 s"])
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["channels", "weights", "saliency", "surgery"])
    parser.add_argument("--print-only", action="store_true", help="leave README.md as it is")
    options = parser.parse_args()
    results = {}
    if "surgery" in options.only:
        results["surgery"] = surgery()
    if "saliency" in options.only:
        results["saliency"] = saliency(options.seeds)
        results["filters"] = filters(options.seeds)
    if "channels" in options.only:
        results["channels"] = [channels(n, options.seeds, options.runs) for n in CHANNELS]
    if "weights" in options.only:
        results["weights"] = [weights(n, options.seeds) for n in LENETS]
    kept = FOLDER / "results" / "pruning.json"
    if kept.exists():
        # What was measured now takes the place of the same part of an earlier run.
        results = json.loads(kept.read_text())["results"] | results
    table = Table(["what", "measured", "asked"], rows(results), align="<<<")
    if options.print_only:
        print(table.to_text())
        return
    publish(
        "pruning",
        table,
        results,
        "python benchmarks/pruning.py",
        "Accuracy of the .tflite before and after, mean of the seeds, in brackets the mean change "
        "in points and its spread (largest less smallest). Channels: scikit-learn's digits at "
        "32x32, Taylor scores, three rounds of pruning and fine-tuning, times and bytes the median "
        "of the seeds; weights: 28x28 glyphs. "
        "Parts that were not run this time are those of an earlier run.",
    )


if __name__ == "__main__":
    main()
