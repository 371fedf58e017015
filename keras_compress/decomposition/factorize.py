"""`factorize`: a model whose layers run as chains of smaller ones."""

import numbers

import keras
import numpy as np

from keras_compress import matching, validation
from keras_compress.budget import Budget
from keras_compress.convert import check_graph, convert
from keras_compress.decomposition.allocation import RankCurve, greedy_ranks
from keras_compress.decomposition.decompose import FORMS
from keras_compress.decomposition.factorization import Factorization, FactorizedLayer
from keras_compress.decomposition.kernel_ridge import KernelRidgeFactors
from keras_compress.decomposition.objectives import OBJECTIVES, Covariance, objective_of
from keras_compress.decomposition.ranks import Energy, rank_policy, resolve_rank
from keras_compress.decomposition.sites import sites_of

#: Names under which the literature knows a form.
ALIASES = {"channel": "svd", "tucker1": "svd", "tucker2": "tucker"}
#: What `form="auto"` tries: chains of convolutions that the kernels of LiteRT run at full speed.
AUTO = ("svd", "spatial", "tucker", "spatial_channel")
_COSTS = ("macs", "params", "bytes")
_WITHOUT_SPECTRA = ("monochromatic", "bicluster", "kernel_ridge", "ternary", "tt")
OWNER = "factorize"


def factorize(
    model,
    form="channel",
    rank="evbmf",
    layers=None,
    objective="weights",
    data=None,
    *,
    loss=None,
    images=256,
    positions=10,
    seed=0,
    batch_size=64,
    verbose=1,
):
    """Replaces Dense layers and convolutions of a trained model by factorized ones.

    Fine-tune the result: `result.model.fit(...)`.

    | `form` | a d x d convolution from S to T channels runs as |
    |---|---|
    | `"channel"` (`"svd"`, `"tucker1"`) | d x d to R, 1x1 to T; a dense layer as two |
    | `"spatial"` | d x 1 to R, 1 x d to T |
    | `"tucker"` (`"tucker2"`) | 1x1 to R1, d x d to R2, 1x1 to T |
    | `"spatial_channel"` | d x 1 to R1, 1 x d to R2, 1x1 to T |
    | `"cp"` | 1x1 to R, depthwise d x 1, depthwise 1 x d, 1x1 to T |
    | `"separable_basis"` | depthwise d x 1 with multiplier R, depthwise 1 x d, 1x1 to T |
    | `"monochromatic"` | 1x1 to R colours, each of the T filters on one of them |
    | `"bicluster"` | 1x1, d x d, 1x1 between G groups of inputs and H of outputs |
    | `"depthwise"` | 1x1 to R, depthwise d x d, 1x1 to T |
    | `"depthwise_separable"` | depthwise d x d with multiplier R, 1x1 to T |
    | `"sparse_basis"` | 1x1 to S, depthwise d x d with multiplier R, 1x1 to become sparse |
    | `"ternary"` | ternary d x d to R, a scale each, ternary 1x1; a dense layer as two |
    | `"tt"` | `kc.layers.TTDense`, `TTConv2D` |
    | `"kernel_ridge"` | dense layers only: `kc.layers.PredictedDense` |

    `"kernel_ridge"` predicts by the places of the inputs with `objective="weights"`, which takes
    layers that read a `Flatten`, and by the covariance of the inputs with `"covariance"`.

    | `objective` | fits, and needs |
    |---|---|
    | `"weights"` | the kernels; nothing |
    | `"gradient"` | the kernels, each weight as important as its gradients are large; `(x, y)` |
    | `"covariance"` | the responses of each layer to its inputs; `x` |
    | `"response"` | the same with a new bias and, where a ReLU follows, as they are after it; `x` |
    | `"response_asym"` | the same, from the outputs of the layers before it as factorized; `x` |

    `"channel"` with `"response_asym"` and a `Budget` is the best start for a .tflite.

    Args:
        model: A built Sequential or functional model, nested ones included. It is not changed.
        form: Name of the form; several names, or `"auto"` (`AUTO`), to take for each layer the one
            whose error is least within the budget.
        rank: For every layer: an integer, as many integers as the form has ranks, a float in (0, 1]
            (share of the squared singular values to keep), `"evbmf"`, a `RankPolicy`; or a
            `Budget(macs=...)`, `Budget(params=...)` for the whole model. `"bicluster"` takes four
            integers (groups of inputs, groups of outputs, two ranks), `"tt"` what its layers take,
            `"kernel_ridge"` a number or (float) share of inputs, a quarter by default.
        layers: Names, globs, classes, layers or predicates: the layers to factorize. `None` for
            every Dense layer and convolution of one group that the form can hold and that becomes
            cheaper.
        objective: See above.
        data: An array, `(x, y)` or an iterable of batches, as the objective needs it.
        loss: For `"gradient"`: a Keras loss or its name; by default the one that the model is
            compiled with.
        images: Number of samples that patches are taken from, drawn from the data. The references
            take 3,000.
        positions: Number of output positions of each.
        seed: Of the draws.
        batch_size: Rows of `data` at a time.
        verbose: 1 for a progress bar over the layers, 0 for none.

    Returns:
        A `Factorization`: `.model`, `.layers`, `.table()`.

    Raises:
        ValueError: if the model has no graph, an argument is none of these, a key chooses no layer
            or one that the form cannot hold, a rank is out of range, the budget cannot be met, or
            the objective needs data.

    Reference:
        Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and
        Detection", 2016; Denton, Zaremba, Bruna, LeCun, Fergus, "Exploiting Linear Structure Within
        Convolutional Networks for Efficient Evaluation", 2014; Jaderberg, Vedaldi, Zisserman,
        "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014; Kim et al.,
        "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
        Applications", 2015.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((12, 12, 3)),
    ...     keras.layers.Conv2D(16, 3, activation="relu", name="first"),
    ...     keras.layers.Conv2D(32, 3, activation="relu", name="second"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(10, name="logits"),
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(64, 12, 12, 3))
    >>> result = factorize(
    ...     model, "channel", Budget(macs=0.5), objective="response_asym", data=x, verbose=0
    ... )
    >>> type(result.model.get_layer("second")).__name__
    'FactorizedConv2D'
    >>> bool(result.macs_after <= 0.5 * result.macs_before)
    True
    """
    check_graph(model, OWNER)
    forms = _forms(form)
    validation.one_of("objective", objective, OBJECTIVES, OWNER)
    _check_rank(rank, forms, objective)
    sites = _chosen(model, layers, forms)
    fitted = objective_of(
        objective,
        model,
        sites,
        data,
        loss=loss,
        images=images,
        positions=positions,
        seed=seed,
        batch_size=batch_size,
        owner=OWNER,
    )
    goals = _to_budget(model, sites, forms, rank, fitted) if isinstance(rank, Budget) else None
    bar = keras.utils.Progbar(len(sites), verbose=verbose, unit_name="layer")
    new, rows = {}, []
    for number, site in enumerate(sites):
        goal = None if goals is None else goals[number]
        found = None
        if goals is None or goal is not None:
            found = _fitted(site, forms, rank, goal, fitted, layers is not None)
        row, layer = found or (FactorizedLayer.kept(site), None)
        if layer is not None:
            new[id(site.layer)] = layer
        rows.append(row)
        bar.update(number + 1)
    if not new:
        raise ValueError(
            f"{OWNER}: no layer of model '{model.name}' becomes cheaper with form={form!r}, "
            f"rank={rank!r}. Lower the rank, or name the `layers`."
        )
    smaller = convert(model, {lambda layer: id(layer) in new: lambda layer: new[id(layer)]})
    return Factorization(model, smaller, rows)


def _forms(form):
    names = (*FORMS, *ALIASES, "tt")
    if form == "auto":
        return AUTO
    several = not isinstance(form, str) and hasattr(form, "__iter__")
    forms = tuple(form) if several else (form,)
    if not forms:
        raise ValueError(f"{OWNER}: `form` is empty; give a name, several, or 'auto'.")
    for one in forms:
        validation.one_of("form", one, names if several else (*names, "auto"), OWNER)
    return tuple(dict.fromkeys(ALIASES.get(one, one) for one in forms))


def _check_rank(rank, forms, objective):
    if isinstance(rank, Budget):
        if rank.what not in _COSTS:
            raise ValueError(
                f"{OWNER}: the budget of a factorization is one of macs=, params= or bytes=; got "
                f"rank={rank!r}. Latency on LiteRT follows the multiply-accumulates."
            )
        unranked = [one for one in forms if one in _WITHOUT_SPECTRA]
        if unranked:
            raise ValueError(
                f"{OWNER}: a budget shares out singular values, and form={unranked[0]!r} has "
                "none that would say what a rank is worth. Give its ranks as integers."
            )
    elif len(forms) > 1:
        raise ValueError(
            f"{OWNER}: several forms are compared at equal cost: give rank=Budget(macs=...); got "
            f"rank={rank!r} with forms {', '.join(map(repr, forms))}."
        )
    elif forms[0] != "tt":
        rank_policy(rank, OWNER)
    if "tt" in forms and objective != "weights":
        raise ValueError(
            f"{OWNER}: form='tt' is fitted to the kernels (TT-SVD): objective='weights'; got "
            f"objective={objective!r}."
        )
    if "ternary" in forms and objective != "weights":
        raise ValueError(
            f"{OWNER}: form='ternary' is fitted to the kernels, term by term: objective='weights'; "
            f"got objective={objective!r}. Fine-tune the result on the data instead."
        )
    if "kernel_ridge" in forms and objective not in ("weights", "covariance"):
        raise ValueError(
            f"{OWNER}: form='kernel_ridge' knows inputs by their places, objective='weights', or "
            f"by their covariance, objective='covariance'; got objective={objective!r}."
        )


def _chosen(model, layers, forms):
    sites = sites_of(model)
    if layers is None:
        chosen = [site for site in sites if any(site.holds(form) for form in forms)]
        if not chosen:
            raise ValueError(
                f"{OWNER}: model '{model.name}' has no layer that {' or '.join(map(repr, forms))} "
                "can hold: Dense layers for 'channel', 'tt' and 'kernel_ridge', convolutions of "
                "one group for all but that."
            )
        return chosen
    keys = [layers] if isinstance(layers, str) or callable(layers) else list(layers)
    found = {id(layer) for layer, _ in matching.resolve(keys, matching.leaf_layers(model))}
    chosen = [site for site in sites if id(site.layer) in found]
    refused = found - {id(site.layer) for site in chosen if any(map(site.holds, forms))}
    for layer in matching.leaf_layers(model):
        if id(layer) in refused:
            raise ValueError(
                f"{OWNER}: '{layer.name}' ({type(layer).__name__}) is chosen by `layers`, and form "
                f"{' or '.join(map(repr, forms))} cannot hold it: Dense layers take 'channel' or "
                "'tt', convolutions of one group take all. Leave it out."
            )
    return chosen


def _to_budget(model, sites, forms, budget, fitted):
    """The cost that each layer may have, or `None` where it stays as it is."""
    whole = _whole_cost(model, budget.what)
    curves = [_curve(site, _leading_form(site, forms), budget.what, fitted) for site in sites]
    rest = whole - sum(curve.dense for curve in curves)
    ranks = greedy_ranks(curves, budget.share * whole - rest)
    if ranks is None:
        least = rest + sum(min(c.dense, c.cost((1,) * len(c.limits))) for c in curves)
        raise ValueError(
            f"{OWNER}: {budget} cannot be met: at rank 1 of every chosen layer, "
            f"{least / whole:.3f} of the {budget.what} are left. Choose more layers."
        )
    return [
        None if one is None else _Goal(budget.what, curve.cost(one), one)
        for curve, one in zip(curves, ranks, strict=True)
    ]


class _Goal:
    """What a layer may cost, and the ranks that the budget was shared out with."""

    def __init__(self, what, cost, ranks):
        self.what, self.cost, self.ranks = what, cost, ranks


def _leading_form(site, forms):
    return next(form for form in forms if site.holds(form))


def _curve(site, form, what, fitted):
    limits = FORMS[form].limits(site.kernel_shape)
    return RankCurve(
        fitted.spectra(site, form),
        limits,
        lambda ranks: site.factorized_cost(what, form, ranks),
        site.cost(what),
    )


def _whole_cost(model, what):
    # Above this floor.
    from keras_compress.profile.macs import macs

    return macs(model) if what == "macs" else model.count_params()


def _fitted(site, forms, rank, goal, fitted, named):
    """`(row, layer)` of the best form, or `None` if the layer does not become cheaper."""
    best = None
    forms = [form for form in forms if site.holds(form)]
    for form in forms:
        if form == "tt":
            return _tensor_train(site, rank, named)
        if form == "kernel_ridge":
            return _predicted(site, rank, fitted, named)
        ranks = _ranks(site, form, rank, goal, form == forms[0], fitted, named)
        if ranks is None or not (named or goal is not None or site.is_cheaper(form, ranks)):
            continue
        candidate = fitted.fit(site, form, ranks)
        if best is None or candidate.error < best.error:
            best = candidate
    if best is None:
        return None
    fitted.settle(site, best)
    layer = site.replacement(best.factors, best.bias)
    return FactorizedLayer.of(site, layer, best.factors.form, best.factors.rank, best.error), layer


def _ranks(site, form, rank, goal, leading, fitted, named):
    if goal is None:
        owner = f"{OWNER}: layer '{site.name}'"
        if isinstance(rank_policy(rank, owner), Energy):
            # Of what the objective measures.
            limits = FORMS[form].limits(site.kernel_shape)
            return resolve_rank(rank, limits, lambda: fitted.spectra(site, form), owner)
        if isinstance(rank, numbers.Integral) and not named:
            # One number for layers of all sizes: those that have less are left as they are.
            rank = min(rank, max(FORMS[form].limits(site.kernel_shape)))
        return FORMS[form].resolve_rank(rank, site.kernel, owner)
    if leading:
        return goal.ranks
    ranks = greedy_ranks([_curve(site, form, goal.what, fitted)], goal.cost)
    return None if ranks is None else ranks[0]


def _tensor_train(site, rank, named):
    # The layers are one floor up from the algebra, and this function is two.
    from keras_compress.layers import TTConv2D, TTDense

    cls = TTDense if isinstance(site.layer, keras.layers.Dense) else TTConv2D
    options = {} if rank == "evbmf" else {"rank": rank}
    layer = cls.from_layer(site.layer, **options)
    if not named and layer.storage_bits() >= 32 * site.layer.count_params():
        return None
    difference = site.kernel - layer.reconstruct_kernel()
    error = float(np.linalg.norm(difference) / (np.linalg.norm(site.kernel) or 1.0))
    return FactorizedLayer.of(site, layer, "tt", tuple(np.ravel(layer.rank)), error), layer


def _predicted(site, rank, fitted, named):
    from keras_compress.layers import PredictedDense

    inputs, units = site.kernel_shape
    owner = f"{OWNER}: layer '{site.name}'"
    rows = fitted.rows(site) if isinstance(fitted, Covariance) else None
    if rows is not None:
        # Dictionaries of this kind are stored: one.
        options = {"columns": 1, "kernel": "covariance", "data": rows}
    elif site.grid is None:
        if named:
            raise ValueError(
                f"{owner} does not read a Flatten that would say which of its inputs are near each "
                "other. Use objective='covariance' with data=, or PredictedDense.from_layer() with "
                "coords=."
            )
        return None
    else:
        options = {"columns": min(5, units), "coords": site.grid}
    if rank != "evbmf":
        if isinstance(rank, numbers.Integral) and not named:
            rank = min(rank, inputs)
        (count,) = KernelRidgeFactors.resolve_rank(rank, site.kernel, owner)
        options["fraction"] = count / inputs
    layer = PredictedDense.from_layer(site.layer, **options)
    if not named and layer.storage_bits() >= 32 * site.layer.count_params():
        return None
    kernel, difference = site.kernel, site.kernel - layer.reconstruct_kernel()
    if rows is not None:
        kernel, difference = rows @ kernel, rows @ difference
    error = float(np.linalg.norm(difference) / (np.linalg.norm(kernel) or 1.0))
    return FactorizedLayer.of(site, layer, "kernel_ridge", (layer.values.shape[0],), error), layer
