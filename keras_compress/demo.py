"""The main job from end to end: train, compress, fine-tune, export, measure, report."""

import base64
import html
import io
import pathlib
import time

import keras
import numpy as np

from keras_compress import (
    callbacks,
    datasets,
    distillation,
    layers,
    pruning,
    regularizers,
    validation,
)
from keras_compress.convert import convert
from keras_compress.export import to_tflite
from keras_compress.profile import compare

NOTES = (
    "Zeros of pruned models are kept out of the file as sparse tensors, at the speed of dense "
    "ones. Binary and hashed layers run on int8 inputs, quantised on the fly: what that does to "
    "the accuracy is in the table."
)


BATCH = 64


def dense_model(shape, classes):
    """A LeNet-300-100 grown wider: two hidden layers of 512 units."""
    stack = [keras.Input(shape), keras.layers.Flatten()]
    for i in (1, 2):
        stack += [
            keras.layers.Dense(512, name=f"fc{i}"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    return keras.Sequential([*stack, keras.layers.Dense(classes, name="logits")], name="dense")


def conv_model(shape, classes):
    """A small VGG-style network: three 3x3 convolutions and a dense layer."""
    stack = [keras.Input(shape)]
    for i, filters in enumerate((32, 64, 128), start=1):
        stack += [
            keras.layers.Conv2D(filters, 3, padding="same", name=f"conv{i}"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            *([keras.layers.MaxPooling2D()] if i < 3 else []),
        ]
    stack += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(classes, name="logits")]
    return keras.Sequential(stack, name="conv")


class Workbench:
    """The data and the way every model here is trained.

    Args:
        data: `((x_train, y_train), (x_test, y_test))`.
        epochs: Epochs of a model trained from scratch; fine-tuning takes half as many.
        seed: Random seed, set again before each training.
    """

    def __init__(self, data, epochs, seed):
        (self.x, self.y), self.test = data
        self.epochs = epochs
        self.seed = seed
        self.shape = self.x.shape[1:]
        self.classes = int(self.y.max()) + 1

    @property
    def fine_tuning_epochs(self):
        return max(1, self.epochs // 2)

    def steps(self, epochs):
        """Training steps of so many epochs."""
        return epochs * -(-len(self.x) // BATCH)

    def fit(self, model, rate=2e-3, epochs=None, **options):
        """Compiles and trains `model` in place; returns it."""
        keras.utils.set_random_seed(self.seed)
        epochs = epochs or self.fine_tuning_epochs
        model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, self.steps(epochs))),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(self.x, self.y, batch_size=BATCH, epochs=epochs, verbose=0, **options)
        return model

    def swap(self, model, rules):
        """Replaces layers by fitted compressed ones and fine-tunes the result."""
        return self.fit(convert(model, rules))

    def prune(self, model, sparsity, **options):
        """Prunes a copy of `model` by magnitude while fine-tuning it."""
        schedule = pruning.PolynomialDecay(
            initial_sparsity=0.0,
            final_sparsity=sparsity,
            begin_step=0,
            end_step=self.steps(self.fine_tuning_epochs) // 2,
            frequency=10,
        )
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        self.fit(copy, callbacks=[callbacks.MagnitudePruning(schedule, **options)])
        return pruning.strip(copy)

    def distil(self, teacher, student):
        """Trains `student` on the teacher's soft targets."""
        keras.utils.set_random_seed(self.seed)
        distiller = distillation.Distiller(teacher, student, temperature=4.0, alpha=0.9)
        self.fit(distiller, epochs=self.epochs)
        return distiller.student


def dense_variants(bench, model):
    """Compressed forms of the dense model: name -> function that makes one."""

    def group_lasso():
        def regularized(layer):
            config = layer.get_config()
            config["kernel_regularizer"] = regularizers.GroupLasso("rows", 0.3)
            new = type(layer).from_config(config)
            new.build((None, layer.kernel.shape[0]))
            new.set_weights(layer.get_weights())
            return new

        new = convert(model, {"fc*": regularized})
        return bench.fit(new, callbacks=[callbacks.ProximalGroupLasso()])

    def student():
        small = keras.Sequential(
            [
                keras.Input(bench.shape),
                keras.layers.Flatten(),
                keras.layers.Dense(48, activation="relu"),
                keras.layers.Dense(bench.classes, name="logits"),
            ],
            name="student",
        )
        return bench.distil(model, small)

    def swap(make):
        return lambda: bench.swap(model, {"fc*": make})

    return {
        "TTDense rank 8": swap(lambda x: layers.TTDense.from_layer(x, rank=8)),
        "CirculantDense block 32": swap(
            lambda x: layers.CirculantDense.from_layer(x, block_size=32)
        ),
        "FactorizedDense rank 32": swap(lambda x: layers.FactorizedDense.from_layer(x, rank=32)),
        "HashedDense 1/16": swap(lambda x: layers.HashedDense.from_layer(x, compression=1 / 16)),
        "BinaryDense weights": swap(
            lambda x: layers.BinaryDense.from_layer(x, input_quantizer=None)
        ),
        "pruned 90 %": lambda: bench.prune(model, 0.9, layers=["fc*"]),
        "pruned 2:4": lambda: bench.prune(model, 0.5, granularity="2:4", layers=["fc*"]),
        "pruned blocks 80 %": lambda: bench.prune(
            model, 0.8, granularity="block", block_size=(8, 8), layers=["fc*"]
        ),
        "GroupLasso rows": group_lasso,
        "distilled student": student,
    }


def conv_variants(bench, model):
    """Compressed forms of the convolutional model: name -> function that makes one."""

    def factorized(**options):
        rule = {"conv[23]": lambda x: layers.FactorizedConv2D.from_layer(x, **options)}
        return lambda: bench.swap(model, rule)

    return {
        "Factorized tucker c/4": lambda: bench.swap(
            model,
            {
                "conv[23]": lambda x: layers.FactorizedConv2D.from_layer(
                    x, form="tucker", rank=(x.kernel.shape[2] // 4, x.filters // 4)
                )
            },
        ),
        "Factorized tucker 80 % energy": factorized(form="tucker", rank=0.8),
        "Factorized spatial 24": factorized(form="spatial", rank=24),
        "Factorized cp 48": factorized(form="cp", rank=48),
        "Factorized svd 80 % energy": factorized(form="svd", rank=0.8),
        "BinaryConv2D weights": lambda: bench.swap(
            model,
            {"conv[23]": lambda x: layers.BinaryConv2D.from_layer(x, input_quantizer=None)},
        ),
        "pruned 80 %": lambda: bench.prune(model, 0.8, layers=["conv*"]),
        "pruned filters 50 %": lambda: bench.prune(
            model, 0.5, granularity="filter", layers=["conv[23]"]
        ),
    }


def run(data="digits", output="keras_compress_demo", epochs=25, seed=0):
    """Runs the demo and writes its folder.

    Args:
        data: `"digits"`, `"mnist"` or `"cifar10"`.
        output: Folder for the .tflite files, `report.html` and the plots; made if need be.
        epochs: Epochs of the float models.
        seed: Random seed.

    Returns:
        Dict from `"dense"` and `"conv"` to their `Comparison`.

    Raises:
        ValueError: if the data cannot be had (offline) or `epochs` is not positive.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    validation.positive_int("epochs", epochs, "demo")
    started = time.perf_counter()
    bench = Workbench(_load(data), epochs, seed)
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    kinds = {"dense": (dense_model, dense_variants), "conv": (conv_model, conv_variants)}
    comparisons = {}
    columns = (
        TextColumn("{task.description:<42}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        for kind, (build, variants) in kinds.items():
            bar = progress.add_task(f"{kind}: float model", total=None)
            keras.utils.set_random_seed(seed)
            model = bench.fit(build(bench.shape, bench.classes), epochs=epochs)
            jobs = variants(bench, model)
            progress.update(bar, total=len(jobs) + 4, completed=1)
            models = {f"{kind} float": model}
            for name, job in jobs.items():
                progress.update(bar, description=f"{kind}: {name}")
                models[name] = job()
                progress.advance(bar)
            progress.update(bar, description=f"{kind}: export")
            files = export_all(models, output / kind, bench)
            progress.advance(bar, 2)
            progress.update(bar, description=f"{kind}: measure")
            comparisons[kind] = compare(files, bench.test, verbose=False)
            progress.update(bar, description=f"{kind}: done", completed=len(jobs) + 4)
    for kind, comparison in comparisons.items():
        comparison.plot(output / f"{kind}.png")
        print(f"\n{comparison}")
    seconds = time.perf_counter() - started
    write_report(output / "report.html", comparisons, data, seconds)
    print(f"\n{NOTES}\nWrote {output}/report.html and the .tflite files in {seconds:.0f} s.")
    return comparisons


def export_all(models, folder, bench):
    """Exports every model, and the first one also quantized, into `folder`."""
    folder.mkdir(exist_ok=True)
    files = {}
    for name, model in models.items():
        files[name] = to_tflite(model, folder / f"{slug(name)}.tflite")
    first = next(iter(models))
    for quantize in ("float16", "dynamic", "int8"):
        name = f"{first.split()[0]} {quantize}"
        files[name] = to_tflite(
            models[first],
            folder / f"{slug(name)}.tflite",
            quantize=quantize,
            calibration=bench.x[:200],
        )
    return files


def slug(name):
    """A file name for a row of the table."""
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def write_report(path, comparisons, data, seconds):
    """Writes one self-contained HTML page with the tables and the plots."""
    parts = [
        "<!doctype html><meta charset='utf-8'><title>keras_compress demo</title>",
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;"
        "padding:0 1rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
        "td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd}img{max-width:100%}</style>",
        f"<h1>keras_compress demo: {html.escape(data)}</h1>",
        "<p>Every model was exported to .tflite and run on stock LiteRT (batch 1, one thread, "
        "medians of paired runs). Accuracy is that of the .tflite on the test set; ratios are to "
        f"the float model. The whole run took {seconds:.0f} s.</p>",
        f"<p>{html.escape(NOTES)}</p>",
    ]
    for kind, comparison in comparisons.items():
        image = io.BytesIO()
        comparison.plot(image)
        encoded = base64.b64encode(image.getvalue()).decode()
        parts.append(f"<h2>{html.escape(kind)} model</h2>{comparison._repr_html_()}")
        parts.append(f"<p><img alt='accuracy against size' src='data:image/png;base64,{encoded}'>")
    path.write_text("\n".join(parts), encoding="utf-8")


def _load(data):
    (x, y), (x_test, y_test) = (
        datasets.digits(size=16) if data == "digits" else datasets.keras_dataset(data)
    )
    return (x, y), (np.asarray(x_test), np.asarray(y_test))
