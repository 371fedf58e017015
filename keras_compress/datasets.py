"""Image data for demo, benchmarks and notebooks: `kc.datasets`, most of it without a network.

Each loader returns `(x_train, y_train), (x_test, y_test)` like `keras.datasets`: images as float32
in [0, 1] of shape `(n, height, width, channels)`, labels as int32 of shape `(n,)`.
"""

import http.client
import io
import os
import pathlib
import warnings
import zipfile

import keras
import numpy as np

from keras_compress import validation
from keras_compress.files import write_atomically

# Raised with every change of the pictures, so that no cached file of an older recipe is read.
GLYPHS_VERSION = 1

# Test fonts are of the families of the training fonts, but no test font is trained on.
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "cmmi10",
    "cmr10",
    "cmss10",
    "cmti10",
)
TEST_FONTS = (
    "DejaVuSansMono-Oblique",
    "DejaVuSerif-Bold",
    "STIXGeneralItalic",
    "cmb10",
    "cmtt10",
)

# Pixels of the distance maps that the pictures are sampled from, and the part of their height that
# a digit takes.
_MAP = 128
_FILL = 0.6

_DOWNLOADS = {
    "mnist": (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "mnist.npz",
    ),
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "cifar-10-batches-py-target_archive",
    ),
}


def digits(size=8):
    """scikit-learn's 1,797 scanned handwritten digits.

    Every fifth sample of each class is a test sample (1,442 to train on, 355 to test), the same in
    every call.

    Args:
        size: Height and width in pixels; above the 8 of the scans they are enlarged by bilinear
            interpolation.

    Returns:
        `(x_train, y_train), (x_test, y_test)`; images of shape `(n, size, size, 1)`.

    Raises:
        ValueError: if `size` is not an integer >= 8.

    Example:

    >>> (x_train, y_train), (x_test, y_test) = digits(size=16)
    >>> x_train.shape, y_test.shape
    ((1442, 16, 16, 1), (355,))
    """
    _check_size(size, "digits")
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    resize = _bilinear(8, size)
    images = np.einsum("si,nij,tj->nst", resize, x.reshape(-1, 8, 8) / 16, resize, optimize=True)
    images = images.astype("float32")[..., None]
    labels = y.astype("int32")
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[4::5]] = True
    return (images[~test], labels[~test]), (images[test], labels[test])


def glyphs(size=28, train=20000, test=4000, seed=0):
    """Printed digits, bent and noisy, in the form of MNIST and made here.

    Digits of the fonts that matplotlib ships, each picture with its own rotation, shear, scale,
    shift, elastic distortion, stroke width (uneven along the stroke), contrast, background shading,
    stray stroke and pixel noise. Test pictures are drawn from fonts that no training picture uses.
    Classes have the same size (to within one picture). A float LeNet-5 reaches 98.5 to 98.9 %.

    The pictures follow from the arguments bit by bit (for one version of matplotlib and numpy) and
    are kept in the folder `datasets` of `KERAS_HOME`, by default `~/.keras/datasets`.

    Args:
        size: Height and width in pixels.
        train: Number of training pictures.
        test: Number of test pictures.
        seed: Integer >= 0.

    Returns:
        `(x_train, y_train), (x_test, y_test)`; images of shape `(n, size, size, 1)`.

    Raises:
        ValueError: if `size` is not an integer >= 8, `train` or `test` not positive, or `seed`
            negative.

    Example:

    >>> (x_train, y_train), (x_test, y_test) = glyphs(train=20, test=10)
    >>> x_train.shape, sorted(y_test.tolist())
    ((20, 28, 28, 1), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    _check_size(size, "glyphs")
    validation.positive_int("train", train, "glyphs")
    validation.positive_int("test", test, "glyphs")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"glyphs: `seed` must be an integer >= 0; got seed={seed!r}.")
    path = cache_folder() / f"glyphs-v{GLYPHS_VERSION}-{size}-{train}-{test}-{seed}.npz"
    arrays = _read(path)
    if arrays is None:
        arrays = {}
        splits = (("train", TRAIN_FONTS, train), ("test", TEST_FONTS, test))
        for stream, (name, fonts, count) in enumerate(splits):
            rng = np.random.default_rng([seed, stream])
            pictures, labels = _draw(_distance_maps(fonts), size, count, rng)
            arrays |= {f"x_{name}": pictures, f"y_{name}": labels}
        _write(path, arrays)
    return tuple(
        (arrays[f"x_{name}"][..., None] / np.float32(255), arrays[f"y_{name}"].astype("int32"))
        for name in ("train", "test")
    )


def keras_dataset(name):
    """MNIST or CIFAR-10 through `keras.datasets`, downloaded by Keras the first time.

    Args:
        name: `"mnist"` or `"cifar10"`.

    Returns:
        `(x_train, y_train), (x_test, y_test)`; images of shape `(n, 28, 28, 1)` for MNIST, and
        CIFAR-10's 32x32 colour images in Keras's `image_data_format()`.

    Raises:
        ValueError: if `name` is another one, or the file is neither there nor to be had.
    """
    validation.one_of("name", name, _DOWNLOADS, "keras_dataset")
    load = {"mnist": keras.datasets.mnist, "cifar10": keras.datasets.cifar10}[name].load_data
    try:
        splits = load()
    except Exception as error:
        # Keras turns what urllib raises into a bare Exception; timeouts and resets come as they
        # are. Anything else (no memory, a corrupted file) is not for us to explain.
        if type(error) is not Exception and not isinstance(
            error, (OSError, http.client.HTTPException)
        ):
            raise
        url, file = _DOWNLOADS[name]
        raise ValueError(
            f"keras_dataset: {name} is not in Keras's cache and could not be downloaded ({error}). "
            f"Fetch {url} on a machine that is online and put it at "
            f"{cache_folder() / file}, or use data that needs no network: digits() (in the demo, "
            '--data digits: data="digits") or glyphs().'
        ) from error
    return tuple(_as_float(x, y) for x, y in splits)


def cache_folder():
    """Folder where Keras keeps data sets, and `glyphs` its pictures."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    return pathlib.Path(home).expanduser() / "datasets"


def _check_size(size, owner):
    if validation.positive_int("size", size, owner) < 8:
        raise ValueError(f"{owner}: `size` must be an integer >= 8; got size={size!r}.")


def _as_float(x, y):
    x = x.astype("float32") / 255
    return x if x.ndim == 4 else x[..., None], y.reshape(-1).astype("int32")


def _bilinear(small, large):
    """Matrix `(large, small)` that interpolates between pixel centres, edges repeated."""
    centres = (np.arange(large) + 0.5) * small / large - 0.5
    return np.stack([np.interp(centres, np.arange(small), row) for row in np.eye(small)], axis=1)


def _read(path):
    """Arrays of the cached file, or `None` where there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"glyphs: drawn again, since {path} cannot be read ({error}).", stacklevel=3)
        return None


def _write(path, arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError as error:
        warnings.warn(
            f"glyphs: not cached ({error}); set KERAS_HOME to a folder that can be written.",
            stacklevel=3,
        )


def _distance_maps(fonts):
    """Signed distance to the outline, `(fonts, 10, map, map)`, in digit heights; inside > 0.

    A picture sampled from a distance map has sharp edges at every size, and a stroke as wide as the
    threshold says.
    """
    from matplotlib import get_data_path
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D, IdentityTransform
    from scipy import ndimage

    figure = Figure(figsize=(1, 1), dpi=_MAP, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    maps = np.empty((len(fonts), 10, _MAP, _MAP), "float32")
    for i, font in enumerate(fonts):
        properties = FontProperties(fname=os.path.join(get_data_path(), "fonts/ttf", f"{font}.ttf"))
        for digit in range(10):
            outline = TextPath((0, 0), str(digit), size=100, prop=properties)
            box = outline.get_extents()
            to_canvas = (
                Affine2D()
                .translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
                .scale(_FILL * _MAP / box.height)
                .translate(_MAP / 2, _MAP / 2)
            )
            figure.clear()
            path = to_canvas.transform_path(outline)
            figure.add_artist(
                PathPatch(path, facecolor="black", lw=0, transform=IdentityTransform())
            )
            canvas.draw()
            ink = np.asarray(canvas.buffer_rgba())[..., 0] < 128
            inside = ndimage.distance_transform_edt(ink)
            outside = ndimage.distance_transform_edt(~ink)
            maps[i, digit] = (inside - outside) / (_FILL * _MAP)
    return maps


def _draw(maps, size, count, rng, chunk=2000):
    """`count` pictures as uint8 `(count, size, size)` and their labels, in random order."""
    labels = rng.permutation(np.arange(count) % 10).astype("uint8")
    pictures = [
        _draw_chunk(maps, size, labels[start : start + chunk], rng)
        for start in range(0, count, chunk)
    ]
    return np.concatenate(pictures), labels


def _draw_chunk(maps, size, labels, rng):
    n = len(labels)

    def uniform(low, high):
        """One number a picture, shaped to go with pictures `(n, size, size)`."""
        return rng.uniform(low, high, (n, 1, 1)).astype("float32")

    # Picture coordinates run from -0.5 to 0.5 down and to the right.
    centres = ((np.arange(size) + 0.5) / size - 0.5).astype("float32")
    down, right = np.meshgrid(centres, centres, indexing="ij")

    # Where in the upright digit (of height 1) each pixel falls: the inverse of shift, elastic
    # distortion, rotation, scale and shear.
    bend = uniform(0.0, 0.024)
    y = down - uniform(-0.1, 0.1) + bend * _smooth(rng, n, size, 0.13)
    x = right - uniform(-0.1, 0.1) + bend * _smooth(rng, n, size, 0.13)
    angle = uniform(-0.22, 0.22)
    height = uniform(0.62, 0.78)
    y, x = (
        (np.cos(angle) * y - np.sin(angle) * x) / height,
        (np.sin(angle) * y + np.cos(angle) * x) / (height * uniform(0.75, 1.15)),
    )
    x = x + uniform(-0.25, 0.25) * y
    fonts = rng.integers(len(maps), size=n)
    distance = _sample(maps, fonts, labels, y, x)

    uneven = uniform(0.0, 0.03) * _smooth(rng, n, size, 0.06)
    ink = np.clip(0.5 + (distance + uniform(-0.005, 0.05) + uneven) * height * size, 0, 1)
    ink *= np.clip(1.0 + uniform(0.0, 0.15) * _smooth(rng, n, size, 0.1), 0, 1)
    ink = np.maximum(ink, uniform(0.2, 0.8) * _stray_stroke(size, down, right, uniform))

    paper = uniform(0.0, 0.25) + uniform(0.0, 0.1) * _smooth(rng, n, size, 0.15)
    pictures = paper + (uniform(0.65, 1.0) - paper) * ink
    pictures += uniform(0.0, 0.06) * rng.standard_normal((n, size, size), "float32")
    return np.rint(np.clip(pictures, 0, 1) * 255).astype("uint8")


def _smooth(rng, n, size, width):
    """Noise `(n, size, size)` of unit variance, correlated over `width` of a picture."""
    from scipy import ndimage

    noise = rng.standard_normal((n, size, size), "float32")
    sigma = width * size
    noise = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="wrap")
    # The filter leaves 1 / (4 pi sigma^2) of the variance.
    return noise * np.float32(2 * np.sqrt(np.pi) * sigma)


def _stray_stroke(size, down, right, uniform):
    """Ink of one straight stroke a picture, near its edge."""
    angle = uniform(-np.pi, np.pi)
    along = uniform(-0.5, 0.5)
    length = uniform(0.05, 0.25)
    normal_y, normal_x = np.sin(angle), np.cos(angle)
    across = down * normal_y + right * normal_x - uniform(0.3, 0.48)
    shift = np.abs(right * normal_y - down * normal_x - along) - length
    distance = np.maximum(np.abs(across) - uniform(0.01, 0.03), shift)
    return np.clip(0.5 - distance * size, 0, 1)


def _sample(maps, fonts, labels, y, x):
    """Bilinear values of each picture's distance map at `(y, x)`, edges repeated."""
    flat = maps.reshape(-1)
    start = ((fonts * 10 + labels) * _MAP * _MAP)[:, None, None]
    y = np.clip((y * _FILL + 0.5) * _MAP - 0.5, 0, _MAP - 1.001)
    x = np.clip((x * _FILL + 0.5) * _MAP - 0.5, 0, _MAP - 1.001)
    row, column = y.astype(int), x.astype(int)
    y, x = y - row, x - column
    corner = start + row * _MAP + column
    top = flat[corner] * (1 - x) + flat[corner + 1] * x
    bottom = flat[corner + _MAP] * (1 - x) + flat[corner + _MAP + 1] * x
    return top * (1 - y) + bottom * y
