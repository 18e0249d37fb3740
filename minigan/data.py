"""What a network is trained on: built-in sets by name, NumPy arrays, and the user's own files.

    data = load("digits")              # or "ring", "mnist", "table.csv", "array.npy", "folder/of/images"
    data = from_array(X)

A Dataset is either an array of rows or a stream that draws fresh rows at each call. Everything is in the
data's own units; a network sees normalise(x) = (x - shift) / scale, which has roughly unit size. A column that is
constant has scale 0, so whatever the network writes there comes back as that constant.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import files
from .errors import MiniganError

PAPER_ROWS = 50_000  # of MNIST that the 2014 paper trained on; the other 10,000 were to choose with
DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of images, then labels


@dataclass(eq=False)
class Dataset:
    """Rows to learn from (X), or a way to draw them (draw); N rows of `features` columns.

    shift and scale may be given as numbers; they are stored as (features,) float32 arrays.
    """

    name: str
    features: int  # columns of one sample
    X: np.ndarray | None = None  # (N, features) float32, the data's own units; None for a stream
    labels: np.ndarray | None = None  # (N,) int64, or texts such as "setosa"
    draw: Callable | None = None  # draw(n, rng, xp) -> (n, features) float32 on rng's device
    label_of: Callable | None = None  # streams: label_of(x, xp) -> (n,), 0, 1, ...: to which part each row belongs
    image_shape: tuple | None = None  # (h, w) or (h, w, 3); pixels then lie in [0, 1]
    shift: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0
    modes: np.ndarray | None = None  # (K, features) float32, centres of a mixture of equal parts
    sigma: float | None = None  # the standard deviation of each part
    density: Callable | None = None  # 1-D streams: p(x), float64, for x of any shape
    columns: list[str] | None = None  # a table's header
    X_test: np.ndarray | None = None  # (M, features) float32, rows held out by the set's authors
    labels_test: np.ndarray | None = None  # (M,), as labels
    X_valid: np.ndarray | None = None  # (L, features) float32, rows kept from training to choose something with
    label_shares: dict | None = None  # {label: its share of the rows}; from the labels, or of a stream's parts

    def __post_init__(self):
        if self.label_shares is None and self.labels is not None:
            classes, counts = np.unique(self.labels, return_counts=True)
            self.label_shares = dict(zip(classes.tolist(), (counts / len(self.labels)).tolist(), strict=True))
        self.shift = np.full(self.features, self.shift, np.float32)
        self.scale = np.full(self.features, self.scale, np.float32)

    @property
    def divisor(self):
        """``scale``, and 1 for a column that is constant."""
        return np.where(self.scale == 0, np.float32(1), self.scale)

    def normalise(self, x):
        """The data's units -> the network's: (x - shift) / scale; x is (..., features) on the host."""
        return (x - self.shift) / self.divisor

    def denormalise(self, x):
        """The network's units -> the data's: x * scale + shift; x is (..., features) on the host."""
        return x * self.scale + self.shift

    def one_hot(self, labels):
        """A column for each class, in the order of label_shares: (n,) labels -> (n, classes) float32.

        Raises MiniganError for a label that the data do not have.
        """
        classes, labels = list(self.label_shares), np.asarray(labels)
        if isinstance(classes[0], str):
            labels = labels.astype(str)
        elif labels.dtype.kind in "US":
            text = files.listed([repr(labels[0].item())])
            raise MiniganError(
                f"{self.name}'s labels are whole numbers, not texts such as {text}: give one of "
                f"{files.listed(map(str, classes))}"
            )
        hot = (labels[:, None] == classes).astype(np.float32)
        if not hot.any(axis=1).all():
            wrong = files.listed([str(labels[~hot.any(axis=1)][0])])
            raise MiniganError(f"{self.name} has no label {wrong}: give one of {files.listed(map(str, classes))}")
        return hot

    def fingerprint(self) -> str:
        """sha256 (hex) of the name, the shapes and the content, by which a resumed run knows its data.

        A stream's content is a seeded draw.
        """
        import hashlib  # it loads OpenSSL: not when minigan is imported

        content = self.real_samples(256, seed=0) if self.X is None else self.X
        digest = hashlib.sha256(f"{self.name} {self.features} {self.image_shape}".encode())
        for part in (content, self.shift, self.scale, self.labels):
            if part is not None:
                digest.update(f"{part.shape} {part.dtype.str}".encode())
                digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()

    def real_samples(self, n: int, seed: int) -> np.ndarray:
        """n real rows without replacement (streams: drawn afresh) -> (n, features) float32, data's units.

        Raises MiniganError if n is less than 1 or more than there are rows.
        """
        rng = np.random.default_rng(seed)
        most = math.inf if self.X is None else len(self.X)
        if not 1 <= n <= most:
            raise MiniganError(f"{n} real samples of {self.name} are wanted: ask for 1 to {most}")
        return self.draw(n, rng, np) if self.X is None else self.X[rng.permutation(most)[:n]]


# ------------------------------------------------------------------------------------------- arrays
def from_array(X, labels=None, image_shape=None, name: str = "array", columns=None) -> Dataset:
    """A Dataset from an array of numbers. The data are copied, as float32.

    Images: uint8 of shape (N, h, w), (N, h, w, 1) or (N, h, w, 3), divided by 255; other numbers of these
    shapes if they lie in [0, 1]; (N, features) of either kind if image_shape is given. uint8 rows of 64 or
    more columns that fill a square are taken for grey images, unless no number is above 15: that would be all
    but black, so they are answers, counts or ratings. Shift 0, scale 1.

    Tables: any other (N, features) or (N,) array; each column is standardised to mean 0 and standard
    deviation 1 (a constant column is only shifted).

    labels: (N,) integers or texts; texts that are all whole numbers, and written as such (7, not 007), become integers.
    columns: the names of a table's columns, if they have any. Raises MiniganError for other
    shapes and dtypes, an empty array, NaN or infinity.
    """
    if "numpy.ma" in sys.modules and np.ma.is_masked(X):  # else there are none, and it need not be imported
        raise MiniganError(f"{name} has {np.ma.count_masked(X)} masked values: fill them in, or leave those rows out")
    X = np.asarray(X)
    if X.dtype.kind not in "biuf":
        raise MiniganError(f"{name} has dtype {X.dtype}: give real numbers, X.astype(np.float32)")
    if X.size == 0:
        raise MiniganError(f"{name} has shape {X.shape}, which is empty: give one row or more")
    if X.ndim == 4 and X.shape[3] == 1:
        X = X[..., 0]
    if not (X.ndim in (1, 2, 3) or (X.ndim == 4 and X.shape[3] == 3)):
        raise MiniganError(
            f"{name} has shape {X.shape}: give a table (N, features), or images (N, height, "
            "width) or (N, height, width, 3) with the colours last"
        )
    side = math.isqrt(X[0].size)
    if X.ndim > 2:
        if image_shape is not None and tuple(image_shape) != X.shape[1:]:
            raise MiniganError(
                f"{name} has images of shape {X.shape[1:]}, not image_shape {tuple(image_shape)}: leave image_shape out"
            )
        image_shape = X.shape[1:]
    elif image_shape is not None:
        image_shape = tuple(int(d) for d in image_shape)
        if math.prod(image_shape) != X[0].size or len(image_shape) < 2 or image_shape[2:] not in ((), (3,)):
            raise MiniganError(
                f"image_shape {image_shape} does not fit {name}'s {X[0].size} columns: give "
                "(h, w) or (h, w, 3) with that product"
            )
    elif X.dtype == np.uint8 and X[0].size >= 64 and side * side == X[0].size and X.max() > 15:
        image_shape = (side, side)
    rows = X.reshape(len(X), -1)
    with np.errstate(over="ignore"):  # beyond float32: reported below as the infinity that it becomes
        data = rows.astype(np.float32)
    if not np.isfinite([data.min(), data.max()]).all():  # without a mask as large as a fourth of the data
        i, j = np.argwhere(~np.isfinite(data))[0]
        raise MiniganError(
            f"{name} has {rows[i, j]} in row {i}, column {j} (counted from 0): remove or "
            "replace what is not a finite float32 number"
        )
    if image_shape is not None:
        if X.dtype == np.uint8:
            data /= 255
        elif data.min() < 0 or data.max() > 1:
            raise MiniganError(
                f"{name}'s pixels lie in [{data.min():g}, {data.max():g}]: scale them to [0, 1] or give them as uint8"
            )
        shift, scale = 0.0, 1.0
    else:
        shift, scale = _standardise(rows, name, columns)
    return Dataset(
        name,
        data.shape[1],
        X=data,
        labels=_labels(labels, len(data), name),
        image_shape=image_shape,
        shift=shift,
        scale=scale,
        columns=columns,
    )


def _standardise(rows, name, columns=None):
    """Mean and standard deviation of each column, the latter exactly 0 where the column is constant."""
    float32 = np.finfo(np.float32)
    shift = rows.mean(axis=0, dtype=np.float64)
    scale = rows.std(axis=0, dtype=np.float64)
    constant = rows.max(axis=0) == rows.min(axis=0)
    scale[constant] = 0  # the standard deviation of many equal numbers may be off by rounding
    tiny = ~constant & (scale < float32.tiny)
    coarse = ~constant & (np.abs(shift) * float32.eps > 0.01 * scale)  # such as seconds since 1970
    for bad, remedy in ((tiny, "give it in a smaller unit"), (coarse, "subtract its mean first")):
        if bad.any():
            j = int(np.argmax(bad))
            column = columns[j] if columns else f"{j} (counted from 0)"
            raise MiniganError(
                f"{name}'s column {column} varies by {scale[j]:g} around {shift[j]:g}, too little for float32: {remedy}"
            )
    return shift, scale


def _labels(labels, n, name):
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.dtype == object and all(isinstance(label, str) for label in labels.flat):  # as pandas has texts
        labels = labels.astype(str)
    if labels.dtype.kind not in "biuU" or labels.shape != (n,):
        raise MiniganError(
            f"{name}'s labels have shape {labels.shape} and dtype {labels.dtype}: give {n} integers or texts"
        )
    if labels.dtype.kind == "u" and labels.max() > np.iinfo(np.int64).max:
        raise MiniganError(f"{name} has the label {labels.max()}, beyond 64 bits with a sign: number the classes anew")
    if labels.dtype.kind == "U":
        classes, which = np.unique(labels, return_inverse=True)
        whole = [whole_or_text(c) for c in classes.tolist()]
        return np.array(whole)[which] if all(isinstance(c, int) for c in whole) else labels
    return labels.astype(np.int64)


def whole_or_text(text):
    """A whole number (of 64 bits) if a text is one, written as Python writes it, else the text: 007 is not 7."""
    whole = re.fullmatch(r"0|-?[1-9]\d{0,18}", text, re.ASCII) is not None and -(2**63) <= int(text) < 2**63
    return int(text) if whole else text


# ------------------------------------------------------------------------------------------ streams
# A draw runs on NumPy's and CuPy's generators alike: rng.standard_normal, rng.random, rng.integers and plain
# arithmetic on arrays of module xp, in float32.
def _mixture(name, centres, sigma, **options) -> Dataset:
    """Equal parts N(centre, sigma^2 I), one for each row of centres (K, features)."""
    centres = np.asarray(centres, np.float32)
    K, features = centres.shape

    def draw(n, rng, xp):
        noise = rng.standard_normal((n, features), dtype=xp.float32)
        return sigma * noise + xp.asarray(centres)[rng.integers(0, K, size=n)]

    def density(x):
        u = (np.asarray(x, np.float64)[..., None] - centres[:, 0]) / sigma  # (..., K)
        return np.exp(-0.5 * u**2).mean(axis=-1) / (sigma * math.sqrt(2 * math.pi))

    def label_of(x, xp):
        return xp.argmin(xp.square(x[:, None] - xp.asarray(centres)).sum(2), axis=1)

    return Dataset(
        name,
        features,
        draw=draw,
        modes=centres if K > 1 else None,
        sigma=sigma,
        density=density if features == 1 else None,
        **_equal_parts(K, label_of),
        **options,
    )


def _equal_parts(K, label_of):
    """The fields of a Dataset in K parts of equal weight, which are its classes; one part is none."""
    return {"label_of": label_of, "label_shares": {k: 1 / K for k in range(K)}} if K > 1 else {}


def _ring(radius):
    angles = 2 * math.pi * np.arange(8) / 8
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _grid():
    return [(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)]


def _swiss_roll(n, rng, xp):
    """The spiral t (cos t, sin t), t = 1.5 pi (1 + 2u), noise 0.25 (S. Marsland 2009, without depth)."""
    t = 1.5 * math.pi * (1 + 2 * rng.random(n, dtype=xp.float32))
    curve = xp.stack([t * xp.cos(t), t * xp.sin(t)], axis=1)
    return curve + 0.25 * rng.standard_normal((n, 2), dtype=xp.float32)


def _moons(n, rng, xp):
    """Two interleaved half circles of radius 1, with noise 0.05."""
    t = math.pi * rng.random(n, dtype=xp.float32)
    lower = rng.integers(0, 2, size=n).astype(xp.float32)  # 0: the upper moon, 1: the lower
    sign = 1 - 2 * lower
    curve = xp.stack([lower + sign * xp.cos(t), 0.5 * lower + sign * xp.sin(t)], axis=1)
    return curve + 0.05 * rng.standard_normal((n, 2), dtype=xp.float32)


def _nearest_moon(x, xp):
    """0 or 1 (n,): to which of the two half circles each row of x (n, 2) is the nearer."""
    distances = []
    for (x0, y0), up in (((0, 0), 1), ((1, 0.5), -1)):
        dx, dy = x[:, 0] - x0, x[:, 1] - y0
        to_end = xp.hypot(xp.abs(dx) - 1, dy)  # a half circle ends where it is one radius from its centre
        distances.append(xp.where(up * dy >= 0, xp.abs(xp.hypot(dx, dy) - 1), to_end))
    return xp.argmin(xp.stack(distances, axis=1), axis=1)


_STREAMS = {
    "gaussian": lambda name: _mixture(name, [[1.5]], 0.7),
    "gaussians": lambda name: _mixture(name, [[-2], [0], [2]], 0.3),
    "ring": lambda name: _mixture(name, _ring(2), 0.02, scale=2 / 3),
    "grid": lambda name: _mixture(name, _grid(), 0.05, scale=2),
    # As PacGAN measures (Lin et al. 2018, after VEEGAN); its grid is the one above.
    "ring-pacgan": lambda name: _mixture(name, _ring(1), 0.01, scale=1 / 1.5),
    "grid-pacgan": lambda name: _mixture(name, _grid(), 0.05, scale=2),
    "swiss-roll": lambda name: Dataset(name, 2, draw=_swiss_roll, scale=7.5),
    "moons": lambda name: Dataset(
        name, 2, draw=_moons, shift=np.array([0.5, 0.25]), scale=0.7, **_equal_parts(2, _nearest_moon)
    ),
}


# ------------------------------------------------------------------------------------------- images
def _digits() -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels, in the package (E. Alpaydin, C. Kaynak 1998, CC BY 4.0)."""
    import hashlib
    import importlib.resources
    import io

    stored = importlib.resources.files(__package__).joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(stored), allow_pickle=False) as f:
        images, labels = f["images"], f["labels"]  # (1797, 8, 8) uint8 in 0..16, (1797,) uint8
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != DIGITS_SHA256:
        raise MiniganError("minigan/digits.npz is damaged (its checksum is wrong): install the package again")
    return from_array(images / np.float32(16), labels, name="digits")


def _mnist(name, data_dir) -> Dataset:
    """60,000 images of 28 x 28 pixels to train on, 10,000 held out.

    mnist: Y. LeCun, C. Cortes, C. Burges. fashion-mnist: H. Xiao, K. Rasul, R. Vollgraf 2017.
    """
    images, labels, test_images, test_labels = files.published(name, data_dir)
    data = from_array(images, labels, name=name)
    test = from_array(test_images, test_labels, name=name)
    data.X_test, data.labels_test = test.X, test.labels
    return data


def _mnist_paper(data_dir) -> Dataset:
    """MNIST as Goodfellow et al. 2014 split it: 50,000 to train on, the last 10,000 of the 60,000 to choose with."""
    data = _mnist("mnist", data_dir)
    rows = {"X": data.X[:PAPER_ROWS], "labels": data.labels[:PAPER_ROWS], "X_valid": data.X[PAPER_ROWS:]}
    return replace(data, name="mnist-paper", label_shares=None, **rows)


# --------------------------------------------------------------------------------------------- load
IN_FOLDERS = ("mnist", "mnist-paper", "fashion-mnist")  # what data_dir is for
NAMES = ("digits", *IN_FOLDERS, *_STREAMS)
KINDS = (".npy", ".npz", ".csv", ".tsv")


def load(name, data_dir=None, image_size: int | None = None, label_column: str | int | None = None) -> Dataset:
    """A built-in set by its name (see NAMES), or the user's own data by their path.

    A path leads to a .npy, .npz, .csv or .tsv file or a folder of PNG or JPEG images; a folder that is
    called like a built-in set is given as ./digits. data_dir: where mnist and fashion-mnist are looked for
    before the cache and the network. image_size: crop and resize a folder's images to squares of this many
    pixels a side. label_column: the column of a .csv or .tsv file that holds each row's label, by its name or
    its number, from 1; images in subfolders have the subfolder's name as their label, and an .npz file may hold
    an array of labels. Raises MiniganError for an unknown name, and for files that cannot be read or make no sense.
    """
    name = os.fspath(name)
    label_column = None if label_column is None else str(label_column)
    path = Path(os.path.expanduser(name))  # of an unknown user it stays as it is
    try:
        is_folder = name not in NAMES and name != "" and path.is_dir()
        if image_size is not None and not is_folder:
            raise MiniganError(f"--image-size {image_size} is for folders of images, not for '{name}': leave it out")
        if label_column is not None and (is_folder or path.suffix.lower() not in (".csv", ".tsv")):
            raise MiniganError(f"--label-column {label_column} is for .csv files, not for '{name}': leave it out")
        if name == "digits":
            return _digits()
        if name in ("mnist", "fashion-mnist"):
            return _mnist(name, data_dir)
        if name == "mnist-paper":
            return _mnist_paper(data_dir)
        if name in _STREAMS:
            return _STREAMS[name](name)
        if is_folder:
            X, labels = files.read_images(path, image_size)
            return from_array(X, labels, name=path.resolve().name)
        if path.suffix.lower() == ".npy":
            return from_array(files.read_npy(path), name=path.name)
        if path.suffix.lower() == ".npz":
            X, labels = files.read_npz(path)
            return from_array(X, labels, name=path.name)
        if path.suffix.lower() in KINDS:
            X, columns, labels = files.read_csv(path, label_column)
            return from_array(X, labels, name=path.name, columns=columns)
    except OSError as err:
        raise MiniganError(f"cannot read '{name}' ({err.strerror or err}): check the path") from err
    raise MiniganError(
        f"'{name}' is no data set: give one of {', '.join(NAMES)}, or the path of a file "
        f"({', '.join(KINDS)}) or of a folder of PNG or JPEG images"
    )
