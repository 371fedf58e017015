"""Factorized layers: what they buy in the .tflite, and how fast and how near kernels are fitted.

    python benchmarks/factorization.py [--runs 20] [--seeds 5]
        [--only vgg cp layers tucker tt tensorly]

LiteRT, batch 1, one thread; the two models of a row run in turn in every round. Fits run on one
thread. Parts that are not run keep the figures of an earlier run.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import FOLDER, publish
from keras import layers
from threadpoolctl import threadpool_limits

import keras_compress as kc
from keras_compress.decomposition import Budget, CPFactors, TuckerFactors, tt_svd, tt_to_matrix
from keras_compress.decomposition.tensor_train import resolve_ranks
from keras_compress.tables import Table

#: VGG-16's 13 convolutions: channels in and out.
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def structured_kernel(shape, seed):
    """A kernel whose channels matter unequally, as in trained nets: power laws under noise."""
    rng = np.random.default_rng(seed)
    inputs, outputs = shape[2:]
    kernel = rng.normal(size=shape) * np.arange(1, inputs + 1)[:, None] ** -0.7
    kernel = kernel * np.arange(1, outputs + 1) ** -0.7
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (inputs, outputs))
    kernel = np.einsum("ijst,sp,tq->ijpq", kernel, u, v, optimize=True)
    noise = rng.normal(size=shape)
    kernel = kernel / np.linalg.norm(kernel) + 0.1 * noise / np.linalg.norm(noise)
    return kernel.astype("float32")


def timed(function, *args, **kwargs):
    """`(result, seconds)`."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - start


def against(stock, other, runs):
    """Bytes and latency of a model, exported, to those of the stock one."""
    plain, small = (kc.export.to_tflite(model) for model in (stock, other))
    timing = plain.benchmark(small, runs=runs)
    return {
        "bytes": [plain.nbytes, small.nbytes],
        "microseconds": list(timing.microseconds),
        "smaller": plain.nbytes / small.nbytes,
        "faster": timing.speedups[1],
    }


# A whole network.


def vgg(size, runs):
    """VGG-16's convolutions at a quarter of their multiply-accumulates."""
    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(
        weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg"
    )
    images = np.random.default_rng(0).normal(size=(24, size, size, 3)).astype("float32")
    plain = kc.export.to_tflite(model)
    found = {}
    for form, objective in (("tucker", "weights"), ("channel", "response")):
        result, seconds = timed(
            kc.decomposition.factorize,
            model,
            form,
            Budget(macs=0.25),
            objective=objective,
            data=None if objective == "weights" else images,
            images=24,
            positions=100,
            batch_size=4,
            verbose=0,
        )
        small = kc.export.to_tflite(result.model)
        found[f"{form}, {objective}"] = {
            "size": size,
            "macs": result.macs_after / result.macs_before,
            "faster": plain.benchmark(small, runs=runs).speedups[1],
            "smaller": plain.nbytes / small.nbytes,
            "seconds": seconds,
        }
    return found


# One layer.


def cp(runs, rank=192):
    """CP of a 3x3 convolution from 256 to 256 channels."""
    found = {}
    for size in (14, 56):
        keras.utils.set_random_seed(0)
        stock = keras.Sequential(
            [keras.Input((size, size, 256)), layers.Conv2D(256, 3, padding="same", name="conv")]
        )
        # How fast the layer is does not depend on what it is fitted to.
        small = keras.Sequential(
            [
                keras.Input((size, size, 256)),
                kc.layers.FactorizedConv2D(256, 3, padding="same", form="cp", rank=rank),
            ]
        )
        macs = kc.profile.macs(stock) / kc.profile.macs(small)
        found[f"{size}x{size}"] = {"rank": rank, "macs": macs, **against(stock, small, runs)}
    return found


def lstm(make):
    sequence = keras.Input((20, 40), batch_size=1)
    return keras.Model(sequence, make(512)(make(512, return_sequences=True)(sequence)))


def behind(shape, *made):
    return keras.Sequential([keras.Input(shape), *made])


def compact_lstm(units, **options):
    shared = options.get("return_sequences", False)
    return kc.layers.CompactLSTM(
        units,
        rank=64,
        share_projection=shared,
        unroll=True,
        **options,
    )


def stock_lstm(units, **options):
    return layers.LSTM(units, unroll=True, **options)


#: Name: stock model, compressed model.
LAYERS = {
    "RankConstrainedDense rank 1, 32 frames of 40, to 512": (
        lambda: behind((1280,), layers.Dense(512)),
        lambda: behind((1280,), kc.layers.RankConstrainedDense(512, input_grid=(32, 40), rank=1)),
    ),
    "PredictedDense 1/16, one column, 4096 to 1024": (
        lambda: behind((4096,), layers.Dense(1024)),
        lambda: behind(
            (4096,),
            kc.layers.PredictedDense(1024, fraction=1 / 16, coords=(64, 64), columns=1, width=4.0),
        ),
    ),
    "TensorRegression cp rank 8, 7x7x512 to 1000": (
        lambda: behind((7, 7, 512), layers.Flatten(), layers.Dense(1000)),
        lambda: behind((7, 7, 512), kc.layers.TensorRegression(1000, rank=8)),
    ),
    "TensorRegression tucker (4, 4, 64, 64), same": (
        lambda: behind((7, 7, 512), layers.Flatten(), layers.Dense(1000)),
        lambda: behind(
            (7, 7, 512), kc.layers.TensorRegression(1000, form="tucker", rank=(4, 4, 64, 64))
        ),
    ),
    "CompactLSTM rank 64, two layers of 512, 20 steps": (
        lambda: lstm(stock_lstm),
        lambda: lstm(compact_lstm),
    ),
    "TernaryFactorizedDense rank 1024, 1024 to 1024": (
        lambda: behind((1024,), layers.Dense(1024)),
        lambda: behind((1024,), kc.layers.TernaryFactorizedDense(1024, rank=1024)),
    ),
    "TernaryFactorizedDense rank 4096, 4096 to 4096": (
        lambda: behind((4096,), layers.Dense(4096)),
        lambda: behind((4096,), kc.layers.TernaryFactorizedDense(4096, rank=4096)),
    ),
}


def new_layers(runs):
    found = {}
    for name, builders in LAYERS.items():
        keras.utils.set_random_seed(0)
        found[name] = against(*(build() for build in builders), runs)
    return found


# Seconds and memory of fits.


def tucker():
    """Tucker-2 of VGG-16's convolutions, ranks by EVBMF."""
    kernels = [
        structured_kernel((3, 3, *pair), n)
        for n, pair in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False))
    ]

    def fit():
        return [
            TuckerFactors.fit(kernel, TuckerFactors.resolve_rank("evbmf", kernel))
            for kernel in kernels
        ]

    with threadpool_limits(1):
        factors, seconds = timed(fit)
    errors = [one.error(kernel) for one, kernel in zip(factors, kernels, strict=True)]
    return {"seconds": seconds, "ranks": [one.rank for one in factors], "errors": errors}


#: Modes of VGG-16's fc6.
MODES = (2, 7, 8, 8, 7, 4), (4,) * 6


def tensor_train(ranks):
    """TT-SVD of a matrix of the size of VGG-16's fc6, each in a process of its own."""
    found = {}
    for rank in ranks:
        command = [sys.executable, __file__, "--fit-tensor-train", str(rank)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[f"rank {rank}"] = json.loads(output.splitlines()[-1])
    return found


def fit_tensor_train(rank):
    matrix = np.random.default_rng(0).standard_normal((25088, 4096), "float32")
    with threadpool_limits(1):
        (_, errors), seconds = timed(tt_svd, matrix, *MODES, rank)
    status = pathlib.Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": seconds, "gibibytes": int(peak) / 2**20, "error": np.hypot.reduce(errors)}


# Beside tensorly.


def relative(kernel, found):
    return float(np.linalg.norm(kernel - found) / np.linalg.norm(kernel))


def tucker_pair(shape, seed):
    """Ours has to find the ranks first; tensorly, which has no EVBMF, is told them."""
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import multi_mode_dot

    kernel = structured_kernel(shape, seed)
    ours, our_seconds = timed(
        lambda: TuckerFactors.fit(kernel, TuckerFactors.resolve_rank("evbmf", kernel))
    )
    ((core, bases), _), seconds = timed(partial_tucker, kernel, list(ours.rank), modes=[2, 3])
    theirs = relative(kernel, multi_mode_dot(core, bases, modes=[2, 3]))
    return (ours.error(kernel), our_seconds), (theirs, seconds)


def cp_pair(shape, rank, seed):
    from tensorly.cp_tensor import cp_to_tensor
    from tensorly.decomposition import parafac

    kernel = structured_kernel(shape, seed)
    ours, our_seconds = timed(CPFactors.fit, kernel, (rank,))
    theirs, seconds = timed(parafac, kernel, rank, random_state=seed)
    return (ours.error(kernel), our_seconds), (relative(kernel, cp_to_tensor(theirs)), seconds)


def tt_pair(modes, rank, seed):
    from tensorly.decomposition import tensor_train_matrix

    shape = [int(np.prod(one)) for one in modes]
    matrix = structured_kernel((1, 1, *shape), seed)[0, 0]
    (cores, _), our_seconds = timed(tt_svd, matrix, *modes, rank)
    ranks = [1, *resolve_ranks(rank, *modes), 1]
    theirs, seconds = timed(tensor_train_matrix, matrix.reshape(modes[0] + modes[1]), ranks)
    ours = relative(matrix, tt_to_matrix(cores))
    return (ours, our_seconds), (relative(matrix, theirs.to_matrix()), seconds)


EIGHTS = ((8, 8, 8, 8),) * 2
PAIRS = {
    **{
        f"EVBMF + HOOI, {'x'.join(map(str, shape))}": (tucker_pair, shape)
        for shape in ((1, 1, 256, 512), (3, 3, 64, 64), (5, 5, 32, 64), (3, 3, 128, 256))
        + ((3, 3, 512, 512),)
    },
    **{
        f"CP rank {rank}, {'x'.join(map(str, shape))}": (cp_pair, shape, rank)
        for shape, rank in (
            ((3, 3, 16, 32), 8),
            ((3, 3, 64, 64), 16),
            ((3, 3, 64, 64), 48),
            ((5, 5, 48, 64), 48),
            ((3, 3, 128, 256), 96),
        )
    },
    "TT rank 8, 1024x1024": (tt_pair, ((4, 8, 8, 4),) * 2, 8),
    "TT rank 32, 512x512": (tt_pair, ((8, 8, 8),) * 2, 32),
    "TT rank 8, 4096x4096": (tt_pair, EIGHTS, 8),
}


def tensorly(seeds, names):
    """Errors and seconds of both on the same tensors, one after the other."""
    import warnings

    # Of modes shorter than the rank.
    warnings.filterwarnings("ignore", module="tensorly")
    found = {}
    with threadpool_limits(1):
        for name, (pair, *arguments) in PAIRS.items():
            if any(part in name for part in names):
                # What is imported or planned on first use is in no figure.
                pair(*arguments, seeds)
                runs = np.array([pair(*arguments, seed) for seed in range(seeds)])
                ratios = runs[:, 0] / runs[:, 1]
                found[name] = {
                    "error": ratios[:, 0].tolist(),
                    "time": ratios[:, 1].tolist(),
                    "seconds": np.median(runs[:, :, 1], axis=0).tolist(),
                }
                print(name, found[name], flush=True)
    return found


def rows(results):
    table = []
    for name, r in results.get("vgg", {}).items():
        figure = (
            f"{r['faster']:.2f}x faster, {r['smaller']:.2f}x smaller, fitted in "
            f"{r['seconds']:.0f} s"
        )
        what = f"VGG-16's convolutions at {r['size']}x{r['size']}, {r['macs']:.0%} of the MACs"
        table.append([f"{what}: {name}", figure, "3x faster"])
    for size, r in results.get("cp", {}).items():
        figure = f"{r['faster']:.2f}x faster, {r['smaller']:.2f}x smaller"
        what = f"CP rank {r['rank']}, 3x3, 256 to 256, {size} ({r['macs']:.1f}x fewer MACs)"
        table.append([what, figure, "5x faster"])
    for name, r in results.get("layers", {}).items():
        figure = f"{r['bytes'][1]:,} bytes: {r['smaller']:.1f}x smaller, {r['faster']:.2f}x faster"
        table.append([name, figure, ""])
    if "tucker" in results:
        r = results["tucker"]
        table.append(
            ["Tucker + EVBMF of VGG-16's 13 convolutions", f"{r['seconds']:.1f} s", "60 s"]
        )
    for name, r in results.get("tt", {}).items():
        figure = f"{r['seconds']:.1f} s, {r['gibibytes']:.2f} GiB"
        table.append([f"TT-SVD of 25088 x 4096, {name}", figure, "60 s, 4 GiB"])
    for name, r in results.get("tensorly", {}).items():
        error, seconds = r["error"], r["time"]
        figure = (
            f"error {np.mean(error):.4f}x (worst {max(error):.4f}x), time "
            f"{np.median(seconds):.2f}x (worst {max(seconds):.2f}x) of {r['seconds'][1]:.3g} s"
        )
        table.append([f"{name}, to tensorly", figure, "1x, 1x"])
    return table


def main():
    parts = ["vgg", "cp", "layers", "tucker", "tt", "tensorly"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="of VGG-16's images")
    parser.add_argument("--only", nargs="+", default=parts, choices=parts)
    parser.add_argument("--pairs", nargs="+", default=[""], help="parts of names in `tensorly`")
    parser.add_argument("--fit-tensor-train", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--print-only", action="store_true", help="leave README.md as it is")
    options = parser.parse_args()
    if options.fit_tensor_train:
        print(json.dumps(fit_tensor_train(options.fit_tensor_train)))
        return
    run = {
        "vgg": lambda: vgg(options.size, options.runs),
        "cp": lambda: cp(options.runs),
        "layers": lambda: new_layers(options.runs),
        "tucker": tucker,
        "tt": lambda: tensor_train((4, 64)),
        "tensorly": lambda: tensorly(options.seeds, options.pairs),
    }
    results = {name: run[name]() for name in parts if name in options.only}
    kept = FOLDER / "results" / "factorization.json"
    if kept.exists():
        results = json.loads(kept.read_text())["results"] | results
    table = Table(["what", "measured", "asked"], rows(results), align="<<<")
    if options.print_only:
        print(table.to_text())
        return
    publish(
        "factorization",
        table,
        results,
        "python benchmarks/factorization.py",
        "Ratios to the float32 export of the stock model in the same run; LiteRT, batch 1, one "
        "thread, median of paired rounds. Weights are random: latency does not depend on them. "
        "Fits are of kernels whose channels follow a power law under a tenth of noise, on one "
        "thread; `to tensorly`: ours divided by tensorly's with its defaults, on the same tensors; "
        "it is told the ranks that EVBMF found, whose time is in ours. Small kernels (CP, 16 to 32 "
        "channels) are fitted from 14 starts, tensorly's from one. Peak memory is that of the "
        "whole process, TensorFlow included. Parts that were not run this time are those of an "
        "earlier run.",
    )


if __name__ == "__main__":
    main()
