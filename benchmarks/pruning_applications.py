"""Every architecture of `keras.applications` at half of its channels.

    python benchmarks/pruning_applications.py [--only ResNet50 ...] [--no-export]

Weights are random, biases and statistics too. Half of the channels of every group get values of
zero, are cut out, and the outputs are compared; then the smaller model is exported to TFLite and
compared again. Channels under a layer normalization (ConvNeXt) are kept. No timing but seconds of
the cut.
"""

import argparse
import inspect
import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import FOLDER, publish

import keras_compress as kc
from keras_compress.pruning.costs import macs_cost
from keras_compress.pruning.surgery import ChannelGraph, cut
from keras_compress.tables import Table

sys.path.insert(0, str(FOLDER.parent))
from tests.pruning.surgery.common import half, outputs, randomize, samples, silence


def measure(name, export):
    size = 75 if "Inception" in name or name == "Xception" else 32
    build = getattr(keras.applications, name)
    model = randomize(build(weights=None, input_shape=(size, size, 3), classes=10))
    graph = ChannelGraph(model)
    kept = half(graph)
    silence(graph, kept)
    x = samples(model)
    expected = outputs(model, x)[0]
    macs, params, layers = kc.profile.macs(model), model.count_params(), len(model.layers)
    start = time.perf_counter()
    small = cut(graph, kept)
    seconds = time.perf_counter() - start
    counted, found = macs_cost(graph)(kept), kc.profile.macs(small)
    del model, graph
    result = {
        "name": name,
        "layers": layers,
        "error": float(np.abs(outputs(small, x)[0] - expected).max()),
        "same_shape": list(outputs(small, x)[0].shape) == list(expected.shape),
        "macs": found / macs,
        "macs_as_counted": bool(abs(counted - found) < 1),
        "parameters": small.count_params() / params,
        "seconds": seconds,
    }
    if export:
        lite = kc.export.to_tflite(small, calibration=x)
        result["tflite_error"] = float(np.abs(lite.predict(x) - expected).max())
    keras.backend.clear_session()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="names of architectures")
    parser.add_argument("--no-export", action="store_true")
    parser.add_argument("--print-only", action="store_true", help="leave README.md as it is")
    options = parser.parse_args()
    every = [name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)]
    kept = FOLDER / "results" / "pruning_applications.json"
    found = {}
    if kept.exists() and not options.print_only:
        # What is measured now takes the place of the same rows of an earlier run.
        found = {r["name"]: r for r in json.loads(kept.read_text())["results"]}
    for name in every if options.only is None else options.only:
        found[name] = measure(name, not options.no_export)
        print(found[name], flush=True)
    results = [found[name] for name in every if name in found]
    rows = [
        [
            r["name"],
            r["layers"],
            f"{r['error']:.0e}",
            f"{r['tflite_error']:.0e}" if "tflite_error" in r else "",
            f"{r['macs']:.2f}" + ("" if r["macs_as_counted"] else " (counted otherwise)"),
            f"{r['parameters']:.2f}",
            f"{r['seconds']:.1f}",
        ]
        for r in results
    ]
    header = ["architecture", "layers", "error", "error, .tflite", "MACs", "parameters", "seconds"]
    table = Table(header, rows)
    if options.print_only:
        print(table.to_text())
        return
    publish(
        "pruning_applications",
        table,
        results,
        "python benchmarks/pruning_applications.py",
        "Error: largest difference of the outputs (softmax) to the unpruned model's. MACs and "
        "parameters: the share that is left. Seconds: the cut, on a machine that was not idle.",
    )


if __name__ == "__main__":
    main()
