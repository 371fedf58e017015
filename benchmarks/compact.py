"""Compact architectures, accelerated convolution and the wavelet front end.

    python benchmarks/compact.py [--runs 20] [--seeds 5]
        [--only counts archive mec swap relu lccl guided wavelet latency sparse]

Accuracy (`swap`, `relu`, `lccl`, `guided`, `wavelet`) is that of the .tflite, on test images that
no choice was made by. `latency` and `sparse` measure time, of networks whose weights are random,
and want a quiet machine. Everything runs on one thread. A result is kept as soon as it is there;
parts and seeds that a run leaves out are those of an earlier one.
"""

import argparse
import functools
import math
import os
import pathlib
import tempfile
import time
import tracemalloc

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np
from common import Results, publish
from keras import layers
from pruning import BATCH, fit, mean_change, share

import keras_compress as kc
from keras_compress.ops import im2col_size, mec_conv2d_numpy, mec_lowered_size
from keras_compress.ops.mec import PAPER_LAYERS
from keras_compress.tables import Table

ACCURACY = ("swap", "relu", "lccl", "guided", "wavelet")
PARTS = ("counts", "archive", "mec", *ACCURACY, "latency", "sparse")
BLOCKS = ("depthwise_separable", "fire", "shuffle")


# Networks.


def stock_conv(x, filters, name):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(x)
    return normalised(x, name)


def normalised(x, name):
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def vgg(size, width=32, pools=3, conv=stock_conv):
    """Six 3x3 convolutions in pairs, each pair twice as wide as the one before."""
    x = inputs = keras.Input((size, size, 1))
    for pair in range(3):
        for number in range(2):
            # The first one reads an image.
            first = pair == number == 0
            make = stock_conv if first else conv
            x = make(x, width * 2**pair, f"conv{pair + 1}_{number + 1}")
        if pair < pools:
            x = layers.MaxPooling2D(name=f"pool{pair + 1}")(x)
    x = layers.Dense(4 * width, activation="relu", name="fc")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def parameters(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def exported_share(model, data):
    return share(kc.export.to_tflite(model), data)


# Counts.

#: Millions of AlexNet's parameters.
ALEXNET = 61.0
#: Name: the network, millions of parameters and of multiply-accumulates as published. ShuffleNet's
#: paper leaves out the last layer.
REFERENCES = {
    "SqueezeNet 1.0": (kc.models.SqueezeNet, 1.248424, None),
    "SqueezeNet 1.1": (lambda: kc.models.SqueezeNet(version="1.1"), 1.235496, None),
    "MobileNet 1.0, 224x224": (kc.models.MobileNet, 4.2, 569),
    "MobileNet 0.25, 128x128": (
        lambda: kc.models.MobileNet((128, 128, 3), alpha=0.25),
        0.47,
        13.6,
    ),
    "ShuffleNet 1x, 1 group": (lambda: kc.models.ShuffleNet(groups=1), None, 143),
    "ShuffleNet 1x, 3 groups": (lambda: kc.models.ShuffleNet(groups=3), None, 137),
    "ShuffleNet 1x, 8 groups": (lambda: kc.models.ShuffleNet(groups=8), None, 137),
    "ResNet-20": (lambda: kc.models.ResNetCIFAR(depth=20), 0.27, None),
    "ResNet-56": (lambda: kc.models.ResNetCIFAR(depth=56), 0.85, None),
    "DenseNet-40, growth 12": (lambda: kc.models.DenseNetCIFAR(depth=40), 1.0, None),
    "LeNet-300-100": (kc.models.LeNet300100, 0.267, None),
    "LeNet-5": (kc.models.LeNet5, 0.431, None),
}


def counts():
    found = {}
    for name, (build, *_) in REFERENCES.items():
        model = build()
        macs = kc.profile.macs(model)
        if "ShuffleNet" in name:
            macs -= math.prod(model.get_layer("predictions").kernel.shape)
        found[name] = {"parameters": parameters(model), "macs": macs}
        keras.backend.clear_session()
    return found


# SqueezeNet in an archive.


def archive():
    """SqueezeNet 1.0, 6-bit codes of a third of its weights: bytes of the .kcz."""
    found = {}
    for weights in ("uniform", "Laplace"):
        keras.utils.set_random_seed(0)
        model = kc.models.SqueezeNet()
        if weights == "Laplace":
            # As heavy-tailed as the weights of trained layers are.
            rng = np.random.default_rng(0)
            for layer in model.layers:
                if layer.weights:
                    layer.kernel.assign(0.05 * rng.laplace(size=layer.kernel.shape))
        small = kc.sharing.deep_compress(model, 0.67, conv_bits=6, epochs=0, share_epochs=0)
        x = np.random.default_rng(0).random((1, 224, 224, 3), "float32")
        with tempfile.TemporaryDirectory() as folder:
            kept = small.save(pathlib.Path(folder, "squeezenet.kcz"))
            again = kc.export.load_archive(kept.path)
            same = np.array_equal(again(x), small.model(x))
        found[weights] = {"bytes": kept.nbytes, "parameters": parameters(model), "same": same}
    return found


# MEC.


def im2col_conv2d(x, kernel, stride):
    height, width = kernel.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))
    windows = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    lowered = np.ascontiguousarray(windows).reshape(*windows.shape[:3], -1)
    return lowered @ kernel.reshape(lowered.shape[-1], -1)


def peak(function, *args):
    """`(result, bytes)`: the most that a call held of numpy's memory, its result included."""
    tracemalloc.start()
    result = function(*args)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, most


def mec():
    """Values of the lowered input and peak memory on the paper's layers, one image."""
    rng, found = np.random.default_rng(0), {}
    for name, (shape, (taps, across), filters, stride) in PAPER_LAYERS.items():
        height, width, channels = shape
        x = rng.normal(size=(1, *shape)).astype("float32")
        kernel = rng.normal(size=(taps, across, channels, filters)).astype("float32")
        outputs, mec_peak = peak(mec_conv2d_numpy, x, kernel, stride)
        expected, im2col_peak = peak(im2col_conv2d, x, kernel, stride)
        size, stock_size = (
            function((1, *shape), (taps, across), stride)
            for function in (mec_lowered_size, im2col_size)
        )
        high, wide = (height - taps) // stride + 1, (width - across) // stride + 1
        formulas = [wide * height * across * channels, high * wide * taps * across * channels]
        found[name] = {
            "shape": [*shape, taps, filters, stride],
            "lowered": [size, stock_size],
            "formulas": formulas,
            "peak": [mec_peak, im2col_peak],
            "output": outputs.nbytes,
            "error": float(np.abs(outputs - expected).max() / np.abs(expected).max()),
        }
    return found


# Accuracy. Networks are trained once for all parts of a run.

EPOCHS, TUNING, SIZE = 15, 15, 16
digits = functools.cache(lambda: kc.datasets.digits(size=SIZE))


@functools.cache
def trained(seed):
    """The VGG-style net on digits, and its accuracy."""
    train, test = digits()
    keras.utils.set_random_seed(seed)
    model = fit(vgg(SIZE), train, EPOCHS, 2e-3)
    return model, exported_share(model, test)


def copy(model):
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    return new


def swap(seed):
    """3x3 convolutions as blocks, distilled for ten epochs."""
    (x, _), test = digits()
    model, before = trained(seed)
    found = {}
    for block in BLOCKS:
        keras.utils.set_random_seed(seed)
        small = kc.models.make_compact(model, block, data=x, distill=10, seed=seed, verbose=0)
        found[block] = {
            "accuracy": [before, exported_share(small, test)],
            "macs": kc.profile.macs(small) / kc.profile.macs(model),
            "parameters": small.count_params() / model.count_params(),
        }
    return found


def relu(seed):
    """Share of the multiply-accumulates whose input a ReLU made zero, by layer."""
    model, _ = trained(seed)
    profile = kc.profile.activation_sparsity(model, digits()[1])
    return {**{one.name: one.skipped for one in profile.layers}, "all": profile.skipped}


def lccl(seed):
    """All convolutions but the first with an LCCL beside them, trained from scratch."""
    train, test = digits()
    _, before = trained(seed)
    found = {}
    for kind in ("1x1", "shared"):

        def conv(x, filters, name, kind=kind):
            layer = kc.layers.LCCLConv2D(
                filters, 3, padding="same", use_bias=False, kind=kind, name=name
            )
            return normalised(layer(x), name)

        keras.utils.set_random_seed(seed)
        model = fit(vgg(SIZE, conv=conv), train, EPOCHS, 2e-3)
        beside = [one for one in model.layers if isinstance(one, kc.layers.LCCLConv2D)]
        inputs = keras.Model(model.inputs, [one.input for one in beside])
        left = every = skipped = outputs = 0
        for layer, maps in zip(beside, inputs.predict(test[0], verbose=0), strict=True):
            positions = math.prod(layer.output.shape[1:3])
            macs = positions * math.prod(layer.convolution.kernel.shape)
            ratio = layer.skip_ratio(maps)
            every += macs
            # The LCCL's own have to be paid.
            left += (1 - ratio) * macs + positions * math.prod(layer.lccl.kernel.shape)
            outputs += positions * layer.filters
            skipped += ratio * positions * layer.filters
        found[kind] = {
            "accuracy": [before, exported_share(model, test)],
            "skipped": skipped / outputs,
            "macs": left / every,
        }
    return found


def guided(seed, sparsity=0.95):
    """Pruning where the cost model of this machine says that zeros pay, for batches of 8."""
    train, test = digits()
    model, before = trained(seed)
    steps = TUNING * -(-len(train[0]) // BATCH)
    schedule = kc.pruning.PolynomialDecay(
        0.5, sparsity, begin_step=0, end_step=steps // 2, frequency=20
    )
    keras.utils.set_random_seed(seed)
    sparse = copy(model)
    pruning = kc.callbacks.GuidedSparsity(sparse, schedule)
    sparse = kc.pruning.strip(fit(sparse, train, TUNING, 1e-3, [pruning]))
    kernels = [one.kernel for one in sparse.layers if hasattr(one, "kernel")]
    zeros = sum(int(np.sum(keras.ops.convert_to_numpy(kernel) == 0)) for kernel in kernels)
    return {
        "accuracy": [before, exported_share(sparse, test)],
        "sparsity": sparsity,
        "zeros": zeros / sum(math.prod(kernel.shape) for kernel in kernels),
        "pruned": [name for name in pruning.costs if name not in pruning.refused],
        "refused": pruning.refused,
    }


#: Size and width of the net on glyphs, pictures that it trains on and is tested on; epochs.
GLYPH_SIZE, GLYPH_WIDTH, GLYPHS, GLYPH_TESTS, GLYPH_EPOCHS = 28, 16, 5000, 2000, 8


def wavelet(seed):
    """The front end, and beside it the net at half the resolution by average pooling."""
    train, test = kc.datasets.glyphs()
    train = [array[:GLYPHS] for array in train]
    test = [array[:GLYPH_TESTS] for array in test]
    keras.utils.set_random_seed(seed)
    model = fit(vgg(GLYPH_SIZE, GLYPH_WIDTH), train, GLYPH_EPOCHS, 2e-3)
    before = exported_share(model, test)
    encoder = kc.models.WaveletAutoEncoder(1)
    encoder.compile(keras.optimizers.Adam(1e-3))
    encoder.fit(train[0], batch_size=BATCH, epochs=2, verbose=0)
    fast = fit(kc.models.accelerate_by_wavelet(model, encoder), train, GLYPH_EPOCHS, 2e-3)
    # With the last pooling left out, as in the other one, weights carry over.
    half = vgg(GLYPH_SIZE // 2, GLYPH_WIDTH, pools=2)
    half.set_weights(model.get_weights())
    inputs = keras.Input((GLYPH_SIZE, GLYPH_SIZE, 1))
    half = keras.Model(inputs, half(layers.AveragePooling2D(2)(inputs)))
    fit(half, train, GLYPH_EPOCHS, 2e-3)
    found = {"wavelet": fast, "average pooling": half}
    return {
        name: {
            "accuracy": [before, exported_share(other, test)],
            "macs": kc.profile.macs(other) / kc.profile.macs(model),
        }
        for name, other in found.items()
    }


# Time.


def latency(runs):
    """.tflite against that of the plain net, LiteRT, batch 1."""
    keras.utils.set_random_seed(0)
    digit_net, glyph_net = vgg(SIZE), vgg(GLYPH_SIZE, GLYPH_WIDTH)
    pairs = {block: (digit_net, kc.models.make_compact(digit_net, block)) for block in BLOCKS}
    encoder = kc.models.WaveletAutoEncoder(1)
    pairs["wavelet"] = (glyph_net, kc.models.accelerate_by_wavelet(glyph_net, encoder))
    found = {}
    for name, models in pairs.items():
        plain, small = (kc.export.to_tflite(model) for model in models)
        timing = plain.benchmark(small, runs=runs)
        found[name] = {
            "faster": timing.speedups[1],
            "smaller": plain.nbytes / small.nbytes,
            "microseconds": list(timing.microseconds),
        }
    return found


def sparse(runs, size=32):
    """The VGG-style net of 32x32 images by sparse kernels, against Keras and LiteRT."""
    rng, found = np.random.default_rng(0), {}
    keras.utils.set_random_seed(0)
    model = vgg(size)
    for zeros in (0.8, 0.9, 0.95, 0.98):
        pruned = kc.pruning.strip(kc.pruning.prune_weights(model, "magnitude", zeros))
        lite = kc.export.to_tflite(pruned)
        for batch in (8, 1):
            x = rng.normal(size=(batch, size, size, 1)).astype("float32")
            compiled = kc.sparse.compile(pruned, batch_size=batch)
            calls = {
                "sparse": functools.partial(compiled.predict, x),
                "keras": functools.partial(pruned.predict_on_batch, x),
                "litert": litert_call(lite, x),
            }
            seconds = rounds(calls, runs)
            found[f"{zeros:.0%} zeros, batch {batch}"] = {
                "seconds": {name: float(np.median(s)) for name, s in seconds.items()},
                "faster": {
                    name: float(np.median(seconds[name] / seconds["sparse"]))
                    for name in ("keras", "litert")
                },
                "sparse_layers": sum(layer.runs == "sparse" for layer in compiled.layers),
            }
    return found


def litert_call(lite, x):
    interpreter = lite.interpreter()
    (details,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(details["index"], x.shape)
    interpreter.allocate_tensors()
    index = interpreter.get_output_details()[0]["index"]

    def call():
        interpreter.set_tensor(details["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(index)

    return call


def rounds(calls, runs):
    """Seconds of each call in each round, in which all run in turn: name to array."""
    first = {name: call() for name, call in calls.items()}
    for outputs in first.values():
        np.testing.assert_allclose(outputs, first["keras"], atol=1e-3)
    seconds = {name: np.empty(runs) for name in calls}
    for number in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(5):
                call()
            seconds[name][number] = (time.perf_counter() - start) / 5
    return seconds


# The table.


def rows(results):
    makers = {
        "counts": count_rows,
        "archive": archive_rows,
        "mec": mec_rows,
        "swap": swap_rows,
        "wavelet": wavelet_rows,
        "lccl": lccl_rows,
        "relu": relu_rows,
        "guided": guided_rows,
        "sparse": sparse_rows,
    }
    return [
        row
        for part, make in makers.items()
        if part in results
        for row in make(results[part], results)
    ]


def count_rows(found, _):
    table = []
    for name, r in found.items():
        _, millions, macs = REFERENCES[name]
        figure = f"{r['parameters']:,} parameters, {r['macs'] / 1e6:.1f} M MACs"
        if name == "SqueezeNet 1.0":
            figure += f"; AlexNet has {1e6 * ALEXNET / r['parameters']:.1f}x as many parameters"
        asked = [] if millions is None else [f"{millions} M parameters"]
        asked += [] if macs is None else [f"{macs} M MACs"]
        table.append([name, figure, ", ".join(asked)])
    return table


def archive_rows(found, _):
    return [
        [
            f"SqueezeNet 1.0, 33 % of the weights, 6 bits, .kcz; random weights ({weights})",
            f"{r['bytes']:,} bytes, {4 * r['parameters'] / r['bytes']:.1f}x smaller; AlexNet is "
            f"{4e6 * ALEXNET / r['bytes']:.0f}x as large",
            "500,000 bytes",
        ]
        for weights, r in found.items()
    ]


def mec_rows(found, _):
    table, ratios = [], []
    for name, r in found.items():
        height, width, channels, taps, filters, stride = r["shape"]
        (size, stock), (ours, theirs) = r["lowered"], r["peak"]
        ratios.append((stock / size, theirs / ours))
        expected = r["formulas"][1] / r["formulas"][0]
        table.append(
            [
                f"MEC {name}: {height}x{width}x{channels}, {filters} of {taps}x{taps}/{stride}",
                f"lowered {4 * size / 1e6:.2f} MB, {stock / size:.2f}x less than im2col; peak "
                f"{ours / 1e6:.2f} MB, {theirs / ours:.2f}x less",
                f"{expected:.2f}x",
            ]
        )
    lowered, peaks = np.mean(ratios, axis=0)
    table.append(
        ["MEC, mean of the 12", f"lowered {lowered:.2f}x less, peak {peaks:.2f}x less", ""]
    )
    return table


def swap_rows(found, results):
    table = []
    for block in BLOCKS:
        runs = [r[block] for r in found.values()]
        r = runs[0]
        figure = f"{mean_change([r['accuracy'] for r in runs])}; {r['macs']:.1%} of the MACs"
        figure += timed(results, block)
        name = f'`make_compact(block="{block}")`, VGG style, {SIZE}x{SIZE} digits'
        table.append([name, figure, "-0.5, 3x faster"])
    return table


def wavelet_rows(found, results):
    table = []
    for name in ("wavelet", "average pooling"):
        runs = [r[name] for r in found.values()]
        figure = f"{mean_change([r['accuracy'] for r in runs])}; {runs[0]['macs']:.1%} of the MACs"
        title = "Wavelet front end" if name == "wavelet" else "half the size by average pooling"
        table.append(
            [
                f"{title}, VGG style, {GLYPH_SIZE}x{GLYPH_SIZE} glyphs",
                figure + timed(results, name),
                "-1, 1.8x faster" if name == "wavelet" else "",
            ]
        )
    return table


def timed(results, name):
    r = results.get("latency", {}).get(name)
    return f"; {r['faster']:.2f}x faster, {r['smaller']:.2f}x smaller" if r else ""


def lccl_rows(found, _):
    table = []
    for kind in ("1x1", "shared"):
        runs = [r[kind] for r in found.values()]
        skipped, left = (100 * np.mean([r[key] for r in runs]) for key in ("skipped", "macs"))
        figure = (
            f"{skipped:.0f} % of the outputs skipped, {left:.0f} % of the MACs left with the "
            f"LCCL's own; {mean_change([r['accuracy'] for r in runs])}"
        )
        table.append([f"LCCL {kind}, VGG style, digits", figure, ""])
    return table


def relu_rows(found, _):
    mean = {name: np.mean([r[name] for r in found.values()]) for name in next(iter(found.values()))}
    every = mean.pop("all")
    figure = f"{every:.0%} of the MACs ({min(mean.values()):.0%} to {max(mean.values()):.0%})"
    return [["Zeros of ReLU could skip, VGG style, digits (by layer)", figure, ""]]


def guided_rows(found, _):
    runs = list(found.values())
    figure = (
        f"{mean_change([r['accuracy'] for r in runs])}; {len(runs[0]['pruned'])} layers pruned, "
        f"{np.mean([r['zeros'] for r in runs]):.0%} of all weights zero; dense: "
        f"{', '.join(runs[0]['refused']) or 'none'}"
    )
    return [[f"Guided sparsity {runs[0]['sparsity']:.0%}, VGG style, digits", figure, ""]]


def sparse_rows(found, _):
    table = []
    for name, r in found.items():
        seconds, faster = r["seconds"], r["faster"]
        figure = (
            f"{1e3 * seconds['sparse']:.2f} ms: {faster['keras']:.2f}x faster than Keras, "
            f"{faster['litert']:.2f}x than LiteRT; {r['sparse_layers']} of 8 layers by sparse "
            "kernels"
        )
        table.append([f"`kc.sparse.compile`, VGG style, 32x32, {name}", figure, ""])
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--print-only", action="store_true", help="leave all files as they are")
    options = parser.parse_args()
    results = Results("compact", keep=not options.print_only)
    alone = {
        "counts": counts,
        "archive": archive,
        "mec": mec,
        "latency": lambda: latency(options.runs),
        "sparse": lambda: sparse(options.runs),
    }
    for part, measure in alone.items():
        if part in options.only:
            results.put(measure(), part)
    accuracy = {"swap": swap, "relu": relu, "lccl": lccl, "guided": guided, "wavelet": wavelet}
    for seed in range(options.first, options.first + options.seeds):
        for part in ACCURACY:
            if part in options.only:
                start = time.process_time()
                results.put(accuracy[part](seed), part, str(seed))
                seconds = time.process_time() - start
                print(f"{part}, seed {seed}: {seconds:.0f} s of processor time", flush=True)
        trained.cache_clear()
        keras.backend.clear_session()
    table = Table(["what", "measured", "asked"], rows(results.all), align="<<<")
    if options.print_only:
        print(table.to_text())
        return
    publish(
        "compact",
        table,
        results.all,
        "python benchmarks/compact.py",
        "Accuracy of the .tflite before and after, mean of the seeds, in brackets the mean change "
        "in points and its spread (largest less smallest); scikit-learn's digits at 16x16 (scans "
        "of 8x8), and 28x28 glyphs of `kc.datasets` (5,000 to train on, 2,000 to test, of other "
        "fonts). Parameters: those that train. Latency: LiteRT, batch 1, one thread, paired "
        "rounds. MEC: numpy's memory during one convolution in float32, output included, against "
        "the same by im2col. Keras: `predict_on_batch`. SqueezeNet's weights are random, not "
        "trained, pruned by magnitude to the paper's density: uniform, as its layers begin, or of "
        "a Laplace distribution, heavy-tailed as trained ones are. Parts that were not run this "
        "time are those of an earlier run.",
    )


if __name__ == "__main__":
    main()
