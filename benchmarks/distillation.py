"""Every distillation method on the same digits, teacher and student, and the cost of a step.

    python benchmarks/distillation.py [--seeds 5] [--only PART ...] [--teachers FOLDER]

The student has 500 labels. `--only` takes names of PARTS, and `step`, which is to run on a quiet
machine; what is not run keeps its result of an earlier run. `--teachers` keeps the two teachers in
a folder between runs. `--validate` is how weights were chosen: other seeds, and training pictures
that the student does not see in place of the test pictures.
"""

import argparse
import functools
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from common import FOLDER, publish
from keras import layers, ops

import keras_compress as kc
from keras_compress import distillation as kd
from keras_compress.quantizers import Ternary
from keras_compress.tables import Table

BATCH, EPOCHS, RATE = 64, 7, 3e-3
LABELLED, UNLABELLED, HELD_OUT = 500, 4000, 2000
#: How often the labelled pictures come in an epoch, beside the others and on their own.
REPEATS, REPEATS_ALONE = 6, 14
#: First of the seeds of `--validate`; those reported begin at 0.
VALIDATION_SEED = 100


# Networks.


def conv(x, filters, name, strides=1, size=3):
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def head(inputs, x, name, classes):
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def make_teacher(name="teacher", stem=None, classes=10):
    """Wide inside its blocks, whose outputs are as large as the student's."""
    if stem is None:
        x = inputs = keras.Input((28, 28, 1))
        x = layers.ReLU()(conv(x, 32, "conv1", 2, 5))
        x = layers.ReLU(name="block1")(conv(x, 8, "project1", size=1))
    else:
        inputs, x = stem
    for i, wide, filters in ((2, 48, 16), (3, 96, 32)):
        x = layers.MaxPooling2D()(layers.ReLU()(conv(x, wide, f"conv{i}")))
        x = layers.ReLU(name=f"block{i}")(conv(x, filters, f"project{i}", size=1))
    x = layers.Dense(128, activation="relu", name="embedding")(layers.Flatten()(x))
    return head(inputs, x, name, classes)


def make_student(name="student", classes=10):
    x = inputs = keras.Input((28, 28, 1))
    x = layers.ReLU(name="block1")(conv(x, 8, "conv1", 2, 5))
    for i, filters in ((2, 16), (3, 32)):
        x = layers.ReLU()(conv(x, filters, f"conv{i}"))
        x = layers.MaxPooling2D(name=f"block{i}")(x)
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    return head(inputs, x, name, classes)


# Training.


def fit(model, x, y=None, epochs=EPOCHS, rate=RATE):
    """Trains a model or a distiller in place by Adam, its rate falling to 0; returns it."""
    steps = epochs * -(-len(x["student"] if isinstance(x, dict) else x) // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def copy(model):
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    return new


class Teachers:
    """Two teachers, trained on all labels, and what is made of them once for all seeds.

    Args:
        train: `(x, y)`.
        folder: Where their weights are kept, or `None`.
    """

    def __init__(self, train, folder=None):
        self.train = train
        self.models = [self._make(seed, folder) for seed in range(2)]

    def _make(self, seed, folder, epochs=4):
        keras.utils.set_random_seed(seed)
        model = make_teacher(f"teacher{seed}")
        path = None if folder is None else pathlib.Path(folder) / f"teacher{seed}.weights.h5"
        if path is not None and path.exists():
            model.load_weights(path)
            return model
        fit(model, *self.train, epochs=epochs)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            model.save_weights(path)
        return model

    @functools.cached_property
    def neurons(self):
        """The 32 neurons of the teacher's embedding that tell the digits best."""
        x, y = (array[:4000] for array in self.train)
        model = self.models[0]
        embedding = keras.Model(model.inputs, model.get_layer("embedding").output)
        return kd.select_neurons(embedding.predict(x, verbose=0), y, keep=32)

    @functools.cached_property
    def synthetic(self):
        """Pictures made from statistics of the teacher's activations, and noise."""
        model = self.models[0]
        metadata = kd.record_metadata(model, self.train[0][:5000], "all_layers")
        return kd.synthesize(model, metadata, 1000, bounds=(0, 1), steps=100, seed=0)


class Task:
    """What one seed has: its pictures, its labels and the test pictures.

    Args:
        seed: Integer.
        teachers: `Teachers`.
        train: `(x, y)`.
        test: `(x, y)`, or `None` for training pictures that are held out.
    """

    def __init__(self, seed, teachers, train, test):
        self.seed, self.teachers, self.teacher = seed, teachers, teachers.models[0]
        x, y = train
        order = np.random.default_rng(seed).permutation(len(y))
        places = [order[y[order] == digit][: LABELLED // 10] for digit in range(10)]
        labelled = np.sort(np.concatenate(places))
        rest = order[~np.isin(order, labelled)]
        free, held_out = np.split(rest[: UNLABELLED + HELD_OUT], [UNLABELLED])
        self.labelled = x[labelled], y[labelled]
        self.unlabelled = x[free]
        #: Labels of these too, for tasks of their own.
        self.all = x[free], y[free]
        self.test = (x[held_out], y[held_out]) if test is None else test
        # An epoch of both, and one of as many steps with the labels alone.
        self.mixed = (
            np.concatenate([np.repeat(self.labelled[0], REPEATS, 0), self.unlabelled]),
            np.concatenate([np.repeat(self.labelled[1], REPEATS), np.full(UNLABELLED, -1)]),
        )
        self.alone = tuple(np.repeat(array, REPEATS_ALONE, 0) for array in self.labelled)

    def student(self, make=make_student, **arguments):
        """A new student, of the same weights in every part."""
        keras.utils.set_random_seed(self.seed)
        return make(**arguments)

    def accuracy(self, model, see=None):
        """Share of the test pictures; `see` is what the model sees of a picture."""
        x, y = self.test
        x = x if see is None else see(x)
        return float(np.mean(model.predict(x, batch_size=500, verbose=0).argmax(-1) == y))

    def distil(self, losses=None, alpha=None, weights=None, stages=None):
        """Accuracy of the student on labelled and unlabelled pictures."""
        student = self.student()
        stages = stages or [kd.Stage(losses, weights, alpha=alpha)]
        fit(kd.Distiller(self.teacher, student, stages=stages, unlabeled=-1), *self.mixed)
        return self.accuracy(student)

    def lead(self, loss, weight):
        """The same with a loss on features that leads and fades: at the end the labels count."""
        return self.distil(loss, 0.5, [(weight, 0.0)])


# Parts: a function of a task, which gives the accuracy of its row, or those of several rows.


def alone(task):
    return task.accuracy(fit(task.student(), *task.alone))


def hinton(task, temperature=4.0, alpha=0.9):
    return task.distil(kd.LogitsDistillation(temperature), alpha)


def logit_regression(task, alpha=0.9):
    loss = kd.LogitRegression()
    loss.adapt(task.teacher.predict(task.unlabelled, verbose=0))
    return task.distil(loss, alpha)


def fitnets(task, epochs=1, weight=0.001, alpha=(0.95, 0.8)):
    # The weight matters although the first stage has nothing else: Adam's second moments outlive
    # it, and after large gradients the steps of the second stage would be small.
    stages = [
        kd.Stage(kd.Hint("block2", "block2", adapter="regressor"), weight, epochs=epochs),
        kd.Stage(kd.LogitsDistillation(4.0), alpha=alpha),
    ]
    return task.distil(stages=stages)


def attention(task, weight=5.0):
    return task.lead(kd.AttentionTransfer("block3", "block3"), weight)


def attention_gradient(task, weight=0.1):
    return task.lead(kd.AttentionTransfer(mode="gradient"), weight)


def noisy_teacher(task, sigma=0.3, weight=0.1, alpha=0.9):
    loss = kd.NoisyTeacher(kd.LogitRegression(normalize=False), 0.5, sigma, seed=task.seed)
    return task.distil(loss, alpha, [weight])


def neuron_selectivity(task, weight=20.0):
    return task.lead(kd.NeuronSelectivity("block3", "block3"), weight)


def fsp(task, epochs=2, weights=(1e-4, 1e-4)):
    blocks = [("block1", "block2"), ("block2", "block3")]
    losses = [kd.FSP(block, block) for block in blocks]
    return task.distil(stages=[kd.Stage(losses, list(weights), epochs=epochs), kd.Stage()])


def sobolev(task, weight=1.0, value_weight=0.1, alpha=0.9):
    losses = [
        kd.LogitRegression(normalize=False),
        kd.Sobolev(weight=1.0, value_weight=0.0, seed=task.seed),
    ]
    return task.distil(losses, alpha, [value_weight, weight])


def dark_rank(task, weight=0.1, **options):
    options = {"alpha": 1.0, "beta": 1.0, "candidates": 7, **options}
    return task.lead(kd.DarkRank("embedding", "embedding", **options), weight)


def selected_neurons(task, weight=0.4):
    loss = kd.SelectedNeurons("embedding", "embedding", neurons=task.teachers.neurons)
    return task.lead(loss, weight)


def centre(x, y):
    """One box a picture, where its digit is: strokes that do not belong to it are at the edge."""
    box = ops.convert_to_tensor([[[0.1, 0.15, 0.9, 0.85]]])
    return ops.broadcast_to(box, (ops.shape(x)[0], 1, 4))


def proposal_mimic(task, layer="block3", pool=3, weight=3.0):
    loss = kd.ProposalMimic(layer, layer, centre, pool=pool, adapter="regressor")
    return task.lead(loss, weight)


def adversarial(task, logit_weight=1.0, adversarial_weight=0.01):
    student = task.student()
    distiller = kd.AdversarialDistiller(
        task.teacher,
        student,
        logit_weight=logit_weight,
        adversarial_weight=adversarial_weight,
        unlabeled=-1,
    )
    fit(distiller, *task.mixed)
    return task.accuracy(student)


def rocket_launching(task, weight=0.03):
    """The booster is the teacher's upper part, untrained, on the student's first block."""
    student = task.student()
    stem = student.inputs[0], student.get_layer("block1").output
    booster = make_teacher("booster", stem)
    rocket = kd.RocketLaunching(student, booster, weight, unlabeled=-1)
    fit(rocket, *task.mixed)
    return task.accuracy(student)


def knowledge_projection(task, weight=3.0, alpha=0.5):
    pairs = [("block3", "block3"), ("embedding", "embedding")]
    student = task.student()
    sizes = [np.prod(task.teacher.get_layer(name).output.shape[1:]) for name, _ in pairs]
    distiller = kd.KnowledgeProjection(
        task.teacher,
        student,
        pairs,
        alpha=alpha,
        weight=[float(weight / size) for size in sizes],
        adapter="regressor",
        unlabeled=-1,
    )
    fit(distiller, *task.mixed)
    return task.accuracy(student)


def model_compression(task, sets=14, probability=0.1, weight=1.0):
    """Both teachers on synthetic pictures, made of the labelled ones alone."""
    x = kd.munge(task.labelled[0], sets, probability, seed=task.seed)
    teacher = kd.Ensemble(task.teachers.models)
    loss = kd.LogitRegression(normalize=False)
    student = task.student()
    distiller = kd.Distiller(teacher, student, loss, [weight], alpha=1.0)
    fit(distiller, np.clip(x, 0, 1))
    return task.accuracy(student)


def data_free(task):
    """Hinton's soft targets on synthetic pictures: no real one is seen."""
    student = task.student()
    x = task.teachers.synthetic
    distiller = kd.Distiller(task.teacher, student, kd.LogitsDistillation(4.0), alpha=1.0)
    fit(distiller, np.repeat(x, 7, 0))
    return task.accuracy(student)


def moonshine(task, block="B(2)", epochs=4):
    # A part before this one has frozen it, and its copies with it.
    task.teacher.trainable = True
    keras.utils.set_random_seed(task.seed)
    distiller = kd.moonshine(task.teacher, block)
    student = distiller.student
    plain = copy(student)
    keras.utils.set_random_seed(task.seed)
    fit(plain, *task.alone, epochs=epochs)
    losses, weights = distiller.distillation_losses, distiller.distillation_loss_weights
    both = kd.Distiller(
        task.teacher,
        student,
        stages=[kd.Stage(losses, [(weight, 0.0) for weight in weights], alpha=0.5)],
        unlabeled=-1,
    )
    fit(both, *task.mixed, epochs=epochs)
    return {"moonshine_alone": task.accuracy(plain), "moonshine": task.accuracy(student)}


def edges(x):
    """Another modality of the same scene: how steep a picture is, half as large and enlarged."""
    down, right = np.gradient(x[..., 0], axis=(1, 2))
    steep = np.hypot(down, right).reshape(-1, 14, 2, 14, 2).mean((2, 4))
    return np.kron(steep, np.ones((2, 2), "float32")).astype("float32")[..., None]


def cross_modal(task, epochs=3, layer="block3", weight=0.001):
    """Features on pairs of a picture and its edges, then the labels; the test has edges only."""
    seen = edges(task.alone[0]), task.alone[1]
    plain = fit(task.student(), *seen)
    student = task.student()
    hint = kd.Hint(layer, layer, adapter="regressor")
    distiller = kd.Distiller(
        task.teacher,
        student,
        stages=[kd.Stage(hint, weight, epochs=epochs), kd.Stage()],
        inputs="paired",
        unlabeled=-1,
    )
    x, y = task.mixed
    fit(distiller, {"teacher": x, "student": edges(x)}, y)
    return {
        "cross_modal_alone": task.accuracy(plain, edges),
        "cross_modal": task.accuracy(student, edges),
    }


#: The layers of a ternary net that are ternary: all but the first and the last.
INNER = ["conv2", "conv3"]


def apprentice(task, alpha=0.9, temperature=4.0):
    """Ternary students, first and last layer float; scheme A's teacher starts from scratch."""

    def ternary():
        return kc.quantizers.apply(task.student(), Ternary(0.7), INNER)

    accuracies = {"ternary_alone": task.accuracy(fit(ternary(), *task.alone))}
    for scheme in "AB":
        teacher = make_teacher() if scheme == "A" else task.teacher
        student = ternary()
        distiller = kd.Apprentice(
            teacher, student, scheme, alpha=alpha, temperature=temperature, unlabeled=-1
        )
        fit(distiller, *task.mixed)
        accuracies[f"apprentice_{scheme}"] = task.accuracy(student)
    return accuracies


def apprentice_c(task, epochs=2, rate=RATE / 10, alpha=0.9, temperature=4.0):
    """The teacher itself, all but its first and last layer ternary, fine-tuned."""
    inner = ["project*", *INNER, "embedding"]
    # A part before this one has frozen it, and its copies with it.
    task.teacher.trainable = True
    plain = kc.quantizers.apply(task.teacher, Ternary(0.7), inner)
    fit(plain, *task.alone, epochs=epochs, rate=rate)
    distiller = kd.Apprentice(
        task.teacher,
        scheme="C",
        quantizer=Ternary(0.7),
        layers=inner,
        alpha=alpha,
        temperature=temperature,
        unlabeled=-1,
    )
    fit(distiller, *task.mixed, epochs=epochs, rate=rate)
    return {
        "ternary_teacher_alone": task.accuracy(plain),
        "apprentice_C": task.accuracy(distiller.student),
    }


def without_forgetting(task, alpha=0.5, epochs=EPOCHS):
    """Digits 0 to 4 first, then 5 to 9 in a second head, without pictures of the first."""
    x, y = task.all
    model = fit(task.student(classes=5), x[y < 5], y[y < 5])
    test_x, test_y = task.test
    accuracies = {}
    for name, weight in (("tuning", 0.0), ("lwf", alpha)):
        keras.utils.set_random_seed(task.seed)
        head = layers.Dense(5, name="new_head")
        distiller = kd.LearningWithoutForgetting(model, head, alpha=weight)
        fit(distiller, x[y >= 5], y[y >= 5] - 5, epochs=epochs)
        outputs = distiller.student.predict(test_x, batch_size=500, verbose=0)
        for which, output, place in (("old", 0, test_y < 5), ("new", 1, test_y >= 5)):
            right = outputs[output][place].argmax(-1) == test_y[place] % 5
            accuracies[f"{name}_{which}"] = float(np.mean(right))
    return accuracies


PARTS = {
    part.__name__: part
    for part in (
        alone,
        hinton,
        logit_regression,
        fitnets,
        attention,
        attention_gradient,
        noisy_teacher,
        neuron_selectivity,
        fsp,
        sobolev,
        dark_rank,
        selected_neurons,
        proposal_mimic,
        adversarial,
        rocket_launching,
        knowledge_projection,
        model_compression,
        data_free,
        moonshine,
        cross_modal,
        apprentice,
        apprentice_c,
        without_forgetting,
    )
}


# Cost of a step.

#: Name: the losses and their weights.
STEPS = {
    "Hinton": lambda: ([kd.LogitsDistillation(4.0)], [1.0]),
    "Hinton, hint and attention transfer": lambda: (
        [
            kd.LogitsDistillation(4.0),
            kd.Hint("block2", "block2", adapter="regressor"),
            kd.AttentionTransfer("block*", "block*"),
        ],
        [1.0, 0.1, 1.0],
    ),
}


def step_times(runs, steps=60):
    """Seconds of a step: the distiller's, the student's alone, the teacher's forward pass."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(steps * BATCH, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, steps * BATCH)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True).cache()
    # At the end of an epoch Keras waits for the autotuner's thread, whose naps are longer than
    # what is measured here.
    quiet = tf.data.Options()
    quiet.autotune.enabled = False
    data = data.prefetch(4).with_options(quiet)
    teacher = make_teacher()
    forward = tf.function(lambda pictures: teacher(pictures, training=False))

    def teach():
        for pictures, _ in data:
            forward(pictures)

    def epoch(model):
        return lambda: model.fit(data, verbose=0)

    def ready(model):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=False)
        return model

    results = []
    for name, make in STEPS.items():
        losses, weights = make()
        distiller = ready(kd.Distiller(teacher, make_student(), losses, weights, alpha=0.5))
        turns = [epoch(distiller), epoch(ready(make_student("plain"))), teach]
        times = []
        for run in range(runs + 2):
            # Each goes first in a third of the rounds: what follows a pause is slower.
            row = [0.0] * 3
            for place in np.roll(range(3), run):
                start = time.perf_counter()
                turns[place]()
                row[place] = (time.perf_counter() - start) / steps
            times.append(row)
        # The first two rounds trace and fill caches.
        times = np.array(times[2:])
        ratios = times[:, 0] / times[:, 1:].sum(1)
        results.append(
            {
                "what": name,
                "ms": (1e3 * np.median(times, axis=0)).tolist(),
                "ratio": float(np.median(ratios)),
                "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
            }
        )
        print(results[-1], flush=True)
    return results


# The table.

#: Row: title, row it is compared with, points asked for.
ROWS = {
    "alone": ("student alone", None, None),
    "hinton": ("Hinton, T=4", "alone", ">= +1"),
    "logit_regression": ("LogitRegression (Ba, Caruana)", "alone", "> 0"),
    "fitnets": ("FitNets: hint, then Hinton", "alone", "> 0"),
    "attention": ("AttentionTransfer", "alone", "> 0"),
    "attention_gradient": ("AttentionTransfer, gradients", "alone", "> 0"),
    "noisy_teacher": ("NoisyTeacher", "alone", "> 0"),
    "neuron_selectivity": ("NeuronSelectivity (NST)", "alone", "> 0"),
    "fsp": ("FSP, then labels", "alone", "> 0"),
    "sobolev": ("Sobolev", "alone", "> 0"),
    "dark_rank": ("DarkRank", "alone", "> 0"),
    "selected_neurons": ("SelectedNeurons", "alone", "> 0"),
    "proposal_mimic": ("ProposalMimic, centre of the picture", "alone", "> 0"),
    "adversarial": ("AdversarialDistiller", "alone", "> 0"),
    "rocket_launching": ("RocketLaunching, untrained booster", "alone", "> 0"),
    "knowledge_projection": ("KnowledgeProjection", "alone", "> 0"),
    "model_compression": ("munge of the 500, two teachers", "alone", "> 0"),
    "data_free": ("synthesize, no real picture", 0.1, "> 0"),
    "moonshine_alone": ("teacher with B(2) blocks, alone", None, None),
    "moonshine": ("moonshine, B(2)", "moonshine_alone", "> 0"),
    "cross_modal_alone": ("student of edges alone", None, None),
    "cross_modal": ("paired inputs: edges", "cross_modal_alone", "> 0"),
    "ternary_alone": ("ternary student alone", None, None),
    "apprentice_A": ("Apprentice A, ternary", "ternary_alone", "> 0"),
    "apprentice_B": ("Apprentice B, ternary", "ternary_alone", "> 0"),
    "ternary_teacher_alone": ("ternary teacher, fine-tuned alone", None, None),
    "apprentice_C": ("Apprentice C, ternary teacher", "ternary_teacher_alone", "> 0"),
    "tuning_old": ("new task tuned: old task", None, None),
    "lwf_old": ("LearningWithoutForgetting: old task", "tuning_old", "> 0"),
    "tuning_new": ("new task tuned: new task", None, None),
    "lwf_new": ("LearningWithoutForgetting: new task", "tuning_new", None),
}


NOTE = (
    f"28x28 glyphs, {LABELLED} of them labelled for the student and {UNLABELLED:,} not; "
    f"{EPOCHS} epochs of {-(-LABELLED * REPEATS_ALONE // BATCH)} steps (fewer where a trained net "
    f"is tuned, and of moonshine and both of its rows), Adam, batch {BATCH}. Teacher: trained on "
    "all 20,000 labels, 99 %. Test pictures are of fonts that nothing was trained on. Mean of the "
    "seeds, in brackets largest less smallest; points to the row with the same student and its "
    "labels alone (synthesize: to chance); `seeds above`: in how many the method is better. Losses "
    "on features stand beside the labels, without soft targets, and fade to 0. Weights were chosen "
    f"on held-out training pictures, seeds from {VALIDATION_SEED} on (`--validate`)."
)


def rows(results):
    """Rows of what there are results of: accuracies of the seeds, and the gain seed by seed."""
    found, table = results.get("accuracy", {}), []
    for row, (title, against, asked) in ROWS.items():
        if row not in found:
            continue
        own = 100 * np.array(found[row])
        cells = [title, f"{own.mean():.2f} % ({np.ptp(own):.2f})", "", "", asked or ""]
        base = found.get(against) if isinstance(against, str) else against
        if base is not None:
            gain = own - 100 * np.array(base)
            cells[2:4] = [f"{gain.mean():+.2f} ({np.ptp(gain):.2f})", f"{np.sum(gain > 0)}"]
        table.append(cells)
    for r in results.get("step", []):
        low, high = r["ratio_quartiles"]
        whole, student, forward = r["ms"]
        figure = f"{r['ratio']:.3f}x ({low:.3f} to {high:.3f})"
        title = f"step, {r['what']}: {whole:.2f} ms to {student:.2f} + {forward:.2f} ms"
        table.append([title, figure, "", "", "<= 1.1x"])
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20, help="rounds of the part `step`")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "step"], default=[*PARTS, "step"])
    parser.add_argument("--teachers", help="folder for the teachers' weights")
    parser.add_argument("--validate", action="store_true", help="hold out, and only print")
    options = parser.parse_args()
    # Sums in one order, so that accuracies can be had again.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    results, kept = {"accuracy": {}}, FOLDER / "results" / "distillation.json"
    if kept.exists() and not options.validate:
        # What is measured now takes the place of the same rows of an earlier run.
        results |= json.loads(kept.read_text())["results"]
    parts = {name: PARTS[name] for name in options.only if name in PARTS}
    if parts:
        train, test = kc.datasets.glyphs()
        teachers = Teachers(train, options.teachers)
        first = VALIDATION_SEED if options.validate else 0
        seeds = range(first, first + options.seeds)
        tasks = [Task(s, teachers, train, None if options.validate else test) for s in seeds]
    for name, part in parts.items():
        start, found = time.perf_counter(), {}
        for task in tasks:
            measured = part(task)
            measured = measured if isinstance(measured, dict) else {name: measured}
            for row, accuracy in measured.items():
                found.setdefault(row, []).append(accuracy)
            keras.utils.clear_session()
        results["accuracy"] |= found
        print(name, found, f"{time.perf_counter() - start:.0f} s", flush=True)
    if "step" in options.only and not options.validate:
        results["step"] = step_times(options.runs)
    header = ["what", "accuracy (spread)", "points to it alone (spread)", "seeds above", "asked"]
    table = Table(header, rows(results), align="<>>>>")
    if options.validate:
        print(table.to_text())
        return
    publish("distillation", table, results, "python benchmarks/distillation.py", NOTE)


if __name__ == "__main__":
    main()
