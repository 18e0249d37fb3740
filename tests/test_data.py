"""Data sets: the built-in ones, arrays, every file format with its damage, and the download."""

import gzip
import hashlib
import http.server
import io
import os
import struct
import threading
import tracemalloc
import types
import zipfile

import numpy as np
import pytest

from minigan import files
from minigan.data import DIGITS_SHA256, NAMES, Dataset, from_array, load
from minigan.errors import MiniganError

STREAMS = [name for name in NAMES if name != "digits" and "mnist" not in name]
A = 1.5 * np.pi  # where the swiss roll begins


def refuses(match):
    """The block raises a MiniganError of one sentence in which `match` occurs."""
    return pytest.raises(MiniganError, match=r"(?s)\A(?=[^\n]*\Z).*" + match)


# ------------------------------------------------------------------------------------------- digits
def test_digits_are_the_published_ones():
    data = load("digits")
    assert data.X.shape == (1797, 64) and data.X.dtype == np.float32 and data.image_shape == (8, 8)
    assert data.X.min() == 0 and data.X.max() == 1
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    raw = np.rint(data.X * 16).astype(np.uint8).tobytes() + data.labels.astype(np.uint8).tobytes()
    assert hashlib.sha256(raw).hexdigest() == DIGITS_SHA256


def test_digits_carry_their_attribution():
    path = os.path.join(os.path.dirname(files.__file__), "digits.npz")
    assert os.path.getsize(path) <= 60_000
    with np.load(path, allow_pickle=False) as f:
        assert "Alpaydin" in str(f["attribution"]) and "CC BY 4.0" in str(f["attribution"])


def test_damaged_digits_are_noticed(monkeypatch):
    monkeypatch.setattr("minigan.data.DIGITS_SHA256", "0" * 64)
    with refuses("digits.npz is damaged"):
        load("digits")


# ------------------------------------------------------------------------------------------ streams
class OnlyWhatCupyHas:
    """A generator with the three methods that NumPy's and CuPy's share."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.standard_normal, self.random, self.integers = rng.standard_normal, rng.random, rng.integers


@pytest.mark.parametrize("name", STREAMS)
def test_streams_draw_float32_of_unit_scale(name):
    data = load(name)
    xp = types.SimpleNamespace(float32=np.float32, asarray=np.asarray, stack=np.stack, cos=np.cos, sin=np.sin)
    x = data.draw(5000, OnlyWhatCupyHas(0), xp)
    assert x.shape == (5000, data.features) and x.dtype == np.float32
    z = data.normalise(x)
    assert z.dtype == np.float32 and (0.4 < z.std(axis=0)).all() and (z.std(axis=0) < 2.5).all()
    assert not np.array_equal(x, data.draw(5000, OnlyWhatCupyHas(1), xp))


@pytest.mark.parametrize(
    "name, mean, cov",
    [
        ("gaussian", [1.5], [[0.49]]),
        ("gaussians", [0], [[8 / 3 + 0.09]]),
        ("ring", [0, 0], [[2.0004, 0], [0, 2.0004]]),
        ("ring-pacgan", [0, 0], [[0.5001, 0], [0, 0.5001]]),
        ("grid", [0, 0], [[8.0025, 0], [0, 8.0025]]),
        ("grid-pacgan", [0, 0], [[8.0025, 0], [0, 8.0025]]),
        # t uniform on [a, 3a], a = 1.5 pi: E[t cos t] = 2, E[t sin t] = 1/a, E[t^2] = 13/3 a^2,
        # E[t^2 cos 2t] = -1/2, E[t^2 sin 2t] = 2a.
        (
            "swiss-roll",
            [2, 1 / A],
            [
                [13 / 6 * A**2 - 0.25 - 4 + 0.0625, A - 2 / A],
                [A - 2 / A, 13 / 6 * A**2 + 0.25 - A**-2 + 0.0625],
            ],
        ),
        # Half circles: E[cos] = 0, E[sin] = 2/pi, hence E[y^2] = 5/8 - 1/pi.
        (
            "moons",
            [0.5, 0.25],
            [
                [0.5 + 0.25 + 0.0025, (0.5 / 2 - 2 / np.pi) / 2],
                [(0.5 / 2 - 2 / np.pi) / 2, 0.5625 - 1 / np.pi + 0.0025],
            ],
        ),
    ],
)
def test_stream_moments(name, mean, cov):
    n = 200_000
    x = load(name).real_samples(n, seed=3).astype(np.float64)
    sem = x.std(axis=0) / np.sqrt(n)
    assert (np.abs(x.mean(axis=0) - mean) < 5 * sem).all()
    assert np.abs(np.atleast_2d(np.cov(x.T)) - cov).max() < 0.02 * np.max(cov)


@pytest.mark.parametrize(
    "name, count, spacing",
    [
        ("gaussians", 3, 2),
        ("ring", 8, 4 * np.sin(np.pi / 8)),
        ("ring-pacgan", 8, 2 * np.sin(np.pi / 8)),
        ("grid", 25, 2),
        ("grid-pacgan", 25, 2),
    ],
)
def test_modes_are_where_the_draws_are(name, count, spacing):
    data = load(name)
    assert data.modes.shape == (count, data.features)
    x = data.real_samples(20_000, seed=1)
    distance = np.linalg.norm(x[:, None] - data.modes, axis=2)  # (N, K)
    nearest = distance.argmin(axis=1)
    assert np.abs(np.bincount(nearest, minlength=count) / len(x) * count - 1).max() < 0.2
    assert abs(np.sqrt((distance.min(axis=1) ** 2).mean() / data.features) / data.sigma - 1) < 0.03
    gaps = np.linalg.norm(data.modes[:, None] - data.modes, axis=2) + 1e9 * np.eye(count)
    assert np.allclose(gaps.min(axis=1), spacing)


@pytest.mark.parametrize("name", ["gaussian", "gaussians"])
def test_density_is_that_of_the_draws(name):
    data = load(name)
    edges = np.linspace(-6, 6, 61)
    x = np.linspace(-6, 6, 6001).reshape(1, -1, 1)
    p = data.density(x)
    assert p.shape == x.shape and p.dtype == np.float64 and abs(p.sum() * (12 / 6000) - 1) < 1e-6
    share = np.histogram(data.real_samples(200_000, seed=2)[:, 0], edges)[0] / 200_000
    assert np.abs(share - p.ravel()[:-1].reshape(60, 100).mean(axis=1) * 0.2).max() < 0.004


# ------------------------------------------------------------------------------------------ Dataset
def test_normalise_round_trip():
    X = np.random.default_rng(0).normal([3, -50, 7], [2, 0.5, 0], (400, 3))
    data = from_array(X)
    z = data.normalise(data.X)
    assert np.allclose(z.mean(axis=0), 0, atol=1e-4)
    assert np.allclose(z.std(axis=0), [1, 1, 0], atol=1e-4) and data.scale[2] == 0 and data.divisor[2] == 1
    assert z.dtype == np.float32 and np.allclose(data.denormalise(z), X, rtol=0, atol=1e-5)


def test_a_constant_column_comes_back_exactly():
    """Whatever the network writes there. The standard deviation of a thousand times 0.1 is not 0, but 1e-17."""
    data = from_array(np.stack([np.arange(1000.0), np.full(1000, 0.1), np.zeros(1000)], axis=1))
    assert data.scale[1:].tolist() == [0, 0] and data.divisor[1:].tolist() == [1, 1]
    x = data.denormalise(np.random.default_rng(0).standard_normal((50, 3), np.float32))
    assert (x[:, 1] == np.float32(0.1)).all() and (x[:, 2] == 0).all() and x[:, 0].std() > 100
    assert data.normalise(np.array([[0, 2.1, 3.0]]))[0, 1:].tolist() == pytest.approx([2, 3])  # of rows never seen


def test_real_samples_are_distinct_rows_and_seeded():
    data = from_array(np.arange(50.0))
    x = data.real_samples(50, seed=0)
    assert np.array_equal(np.sort(x[:, 0]), np.arange(50)) and not np.array_equal(x, data.X)
    assert np.array_equal(x, data.real_samples(50, seed=0))
    assert not np.array_equal(x, data.real_samples(50, seed=1))
    for n in (0, 51):
        with refuses(f"{n} real samples of array"):
            data.real_samples(n, seed=0)


def test_fingerprint_follows_name_content_and_labels():
    X = np.arange(12.0).reshape(6, 2)
    prints = [
        from_array(X),
        from_array(X + [0, 1e-3]),
        from_array(X, name="b"),
        from_array(X, np.arange(6)),
        from_array(X.reshape(4, 3)),
        load("ring"),
        load("grid"),
        load("grid-pacgan"),
        load("moons"),
    ]
    prints = [data.fingerprint() for data in prints]
    assert len(set(prints)) == len(prints) and all(len(p) == 64 for p in prints)
    assert from_array(X).fingerprint() == prints[0] and load("ring").fingerprint() == prints[5]


# ------------------------------------------------------------------------------------------- arrays
def test_arrays_become_images_or_tables():
    def kind(X, **options):
        data = from_array(X, **options)
        assert data.X.dtype == np.float32 and data.X.shape == (len(X), data.features)
        return data.image_shape, float(data.X.max())

    byte = np.full((3, 8, 8), 255, np.uint8)
    assert kind(byte) == ((8, 8), 1)
    assert kind(byte[..., None]) == ((8, 8), 1)
    assert kind(np.repeat(byte[..., None], 3, axis=3)) == ((8, 8, 3), 1)
    assert kind(byte.reshape(3, 64)) == ((8, 8), 1)
    assert kind(byte.reshape(3, 64), image_shape=(4, 16)) == ((4, 16), 1)
    assert kind(byte.reshape(3, 64)[:, :63]) == (None, 255)
    assert kind(byte.reshape(3, 64)[:, :49]) == (None, 255)  # 7 x 7: small enough to be a table
    assert kind(byte.reshape(3, 64) // 17) == (None, 15)  # answers, not all but black images
    assert kind(byte // 17) == ((8, 8), np.float32(15) / 255)
    assert kind(np.minimum(byte, 16).reshape(3, 64)) == ((8, 8), np.float32(16) / 255)
    assert kind(byte / 510) == ((8, 8), 0.5)
    assert kind(byte.astype(bool)) == ((8, 8), 1)
    assert kind(byte.reshape(3, 64) / 255, image_shape=(8, 8)) == ((8, 8), 1)
    assert kind(np.arange(5)) == (None, 4)
    assert kind(np.arange(6).reshape(3, 2) > 2) == (None, 1)
    images = from_array(byte)
    assert (images.shift == 0).all() and (images.scale == 1).all()
    assert from_array(np.arange(3.0), labels=np.uint8([2, 0, 1])).labels.dtype == np.int64


def test_array_is_copied():
    X = np.ones((2, 2), np.float32)
    data = from_array(X)
    X[:] = 7
    assert (data.X == 1).all()


@pytest.mark.parametrize(
    "X, options, match",
    [
        (np.array([{}, 1]), {}, "dtype object"),
        (np.array(["a"]), {}, "dtype <U1"),
        (np.ones(3, complex), {}, "dtype complex128"),
        (np.ones((0, 3)), {}, "empty"),
        (np.float64(1), {}, r"shape \(\)"),
        (np.ones((2, 3, 4, 4)), {}, "colours last"),
        (np.array([[1, 2], [3, np.nan]]), {}, "nan in row 1, column 1"),
        (
            np.eye(2),
            {"labels": np.array([2**63 + 5, 1], np.uint64)},
            "has the label 9223372036854775813, beyond 64 bits",
        ),
        (np.array([[1, np.inf], [3, 4]]), {}, "inf in row 0, column 1"),
        (np.array([[1, 2], [-1e300, 4]]), {}, r"-1e\+300 in row 1, column 0"),
        (np.array([1.7e9, 1.7e9 + 1]), {}, "column 0 .* subtract its mean"),
        (np.array([[1, 1e-50], [2, 2e-50]]), {}, "column 1 .* varies by 5e-51 .* give it in a smaller unit"),
        (np.array([1e-300, 2e-300]), {}, "varies by 0 around .* give it in a smaller unit"),
        (np.full((2, 3, 3), 1.5), {}, r"pixels lie in \[1.5, 1.5\]"),
        (np.full((2, 3, 3), 200), {}, "give them as uint8"),
        (np.ones((2, 9)), {"image_shape": (3, 4)}, r"image_shape \(3, 4\)"),
        (np.ones((2, 3, 3)), {"image_shape": (9, 1)}, r"image_shape \(9, 1\)"),
        (np.ones((3, 1)), {"labels": [0, 1]}, "give 3 integers"),
        (np.ones((3, 1)), {"labels": [0.5, 1, 2]}, "give 3 integers"),
    ],
)
def test_bad_arrays_are_refused(X, options, match):
    with refuses(match):
        from_array(X, **options)


# ---------------------------------------------------------------------------------------------- IDX
def idx(array, shape=None):
    shape = array.shape if shape is None else shape
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


IMAGES = np.random.default_rng(5).integers(0, 256, (7, 4, 5), np.uint8)


def test_idx_round_trip(tmp_path):
    (tmp_path / "plain").write_bytes(idx(IMAGES))
    (tmp_path / "zipped").write_bytes(gzip.compress(idx(IMAGES)))
    digest = hashlib.sha256(idx(IMAGES)).hexdigest()
    for name in ("plain", "zipped"):
        array = files.read_idx(tmp_path / name, digest)
        assert array.dtype == np.uint8 and np.array_equal(array, IMAGES)
        with refuses("not the published file"):
            files.read_idx(tmp_path / name, "0" * 64)


def corrupt(data, at):
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


ZIPPED = gzip.compress(idx(IMAGES))
BIG = (100_000, 1000, 1000)  # 100 GB


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "starts with nothing"),
        (b"\0\0\x09\x01\0\0\0\x01a", "starts with 00000901"),
        (b"\0\0\x08\x09" + bytes(40), "starts with 00000809"),
        (b"\0\0\x08\x03\0\0", "truncated"),
        (idx(IMAGES)[:-1], "truncated"),
        (idx(IMAGES) + b"a", "holds more"),
        (idx(IMAGES, BIG), "truncated or damaged"),
        (gzip.compress(idx(IMAGES, BIG)), "truncated or damaged"),
        (gzip.compress(idx(IMAGES) + bytes(10**7)), "holds more"),  # a bomb: never decompressed
        (gzip.compress(idx(IMAGES)[:-1]), "holds fewer"),
        (ZIPPED[:-20], "cannot be read"),
        (ZIPPED[:6], "cannot be read"),
        (corrupt(ZIPPED, 10), "cannot be read .*invalid block"),
        (corrupt(ZIPPED, 40), "cannot be read|damaged"),
        (corrupt(ZIPPED, -6), "cannot be read .*CRC"),
    ],
)
def test_bad_idx_is_refused(tmp_path, content, match):
    path = tmp_path / "file"
    path.write_bytes(content)
    with refuses(match) as caught:
        files.read_idx(path)
    assert str(path) in str(caught.value)


# ------------------------------------------------------------------------- mnist: folder, cache, net
PARTS = [IMAGES, np.arange(7, dtype=np.uint8), IMAGES[:2] // 2, np.arange(2, dtype=np.uint8)]
FILES = list(files.CONTENT["mnist"])


@pytest.fixture
def small_mnist(monkeypatch, tmp_path):
    """Four small files take the place of MNIST's; the cache is empty and no mirror is known."""
    content = {file: hashlib.sha256(idx(part)).hexdigest() for file, part in zip(FILES, PARTS, strict=True)}
    monkeypatch.setitem(files.CONTENT, "mnist", content)
    monkeypatch.setitem(files.MIRRORS, "mnist", ())
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_parts(folder, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for file, part in zip(FILES, PARTS, strict=True):
        path = folder / (file if zipped else file[:-3])
        path.write_bytes(gzip.compress(idx(part)) if zipped else idx(part))


def is_small_mnist(data):
    return (
        np.array_equal(data.X, IMAGES.reshape(7, 20) / np.float32(255))
        and data.image_shape == (4, 5)
        and data.labels.tolist() == list(range(7))
        and data.X_test.shape == (2, 20)
        and data.labels_test.tolist() == [0, 1]
        and data.X_test.max() <= 0.5
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("folder", ["", "mnist"])
def test_mnist_from_a_folder(small_mnist, folder, zipped):
    write_parts(small_mnist / "data" / folder, zipped)
    assert is_small_mnist(load("mnist", small_mnist / "data"))
    assert not (small_mnist / "cache").exists()


def test_mnist_is_split_as_in_the_paper(small_mnist, monkeypatch):
    write_parts(small_mnist)
    whole, split = load("mnist", small_mnist), None
    monkeypatch.setattr("minigan.data.PAPER_ROWS", 2)
    split = load("mnist-paper", small_mnist)
    assert np.array_equal(split.X, whole.X[:2]) and np.array_equal(split.labels, whole.labels[:2])
    assert np.array_equal(split.X_valid, whole.X[2:]) and len(split.X_valid) > 0
    assert np.array_equal(split.X_test, whole.X_test) and split.fingerprint() != whole.fingerprint()


def test_damaged_mnist_in_a_folder_is_refused(small_mnist):
    write_parts(small_mnist)
    (small_mnist / FILES[2]).write_bytes(gzip.compress(idx(IMAGES)))  # well formed, but other images
    with refuses(f"{FILES[2]} is not the published file"):
        load("mnist", small_mnist)


def test_mnist_without_files_or_network_says_where_it_looked(small_mnist, monkeypatch):
    monkeypatch.setitem(files.MIRRORS, "mnist", ("https://127.0.0.1:1/",))
    with refuses("--data-dir FOLDER") as caught:
        load("mnist", small_mnist)
    for part in (FILES[0], str(small_mnist), str(small_mnist / "cache"), "https://127.0.0.1:1/"):
        assert part in str(caught.value)
    assert not list((small_mnist / "cache" / "mnist").iterdir())
    with refuses("is not a folder"):
        load("mnist", small_mnist / "nowhere")


def test_unwritable_cache_is_a_sentence(small_mnist, monkeypatch):
    (small_mnist / "file").touch()
    monkeypatch.setenv("MINIGAN_CACHE", str(small_mnist / "file"))
    with refuses("set MINIGAN_CACHE"):
        load("mnist")


def test_download_tries_the_mirrors_in_turn(small_mnist, monkeypatch):
    write_parts(small_mnist / "served" / "right")
    write_parts(small_mnist / "served" / "wrong")
    for file in FILES:
        (small_mnist / "served" / "wrong" / file).write_bytes(gzip.compress(idx(IMAGES[:1])))
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(small_mnist / "served"))

        def log_message(self, form, *args):
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        mirrors = tuple(f"{base}/{folder}/" for folder in ("absent", "wrong", "right"))
        monkeypatch.setitem(files.MIRRORS, "mnist", mirrors)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        cache = small_mnist / "cache" / "mnist"
        assert is_small_mnist(load("mnist"))
        assert sorted(p.name for p in cache.iterdir()) == sorted(FILES)  # no half files left
        tried = list(dict.fromkeys(p for p in requests if p.endswith(FILES[0])))
        assert tried == [f"/{m}/{FILES[0]}" for m in ("absent", "wrong", "right")]
        requests.clear()
        assert is_small_mnist(load("mnist")) and not requests  # from the cache
        (cache / FILES[1]).write_bytes(ZIPPED[:-20])
        assert is_small_mnist(load("mnist")) and requests  # a damaged cache is fetched anew
        (cache / FILES[0]).unlink()
        monkeypatch.setattr(files, "MAX_DOWNLOAD", 10)
        with refuses("more than 10 bytes"):
            load("mnist")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_mirrors_and_checksums_are_complete():
    for name in ("mnist", "fashion-mnist"):
        assert len(files.MIRRORS[name]) >= 2
        assert all(url.startswith("https://") and url.endswith("/") for url in files.MIRRORS[name])
        assert len(set(files.CONTENT[name].values())) == 4


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_files(name):
    folder = os.environ.get("MINIGAN_DATA_DIR")
    if not folder:
        pytest.skip("set MINIGAN_DATA_DIR to a folder with the IDX files")
    data = load(name, folder)
    assert data.X.shape == (60000, 784) and data.X_test.shape == (10000, 784) and data.image_shape == (28, 28)
    assert data.X.min() == 0 and data.X.max() == 1
    assert np.bincount(data.labels).sum() == 60000 and len(np.bincount(data.labels_test)) == 10


# -------------------------------------------------------------------------------------- .npy, .npz
def saved(save, *args, **arrays):
    buffer = io.BytesIO()
    save(buffer, *args, **arrays)
    return buffer.getvalue()


TABLE = np.random.default_rng(6).normal(size=(9, 4))
NPY = saved(np.save, TABLE)
HUGE = NPY.replace(b"(9, 4)", b"(9999999999, 4)").replace(b" " * 9 + b"\n", b"\n")  # same header length


@pytest.mark.parametrize("array", [TABLE, np.asfortranarray(TABLE), TABLE.astype(">f4"), TABLE[:, 0]])
def test_npy_and_npz_are_read(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", other=np.ones(3), X=array, y=np.arange(9))
    data, packed = load(tmp_path / "a.npy"), load(str(tmp_path / "a.npz"))
    assert np.array_equal(data.X, array.reshape(9, -1).astype(np.float32)) and data.name == "a.npy"
    assert np.array_equal(data.X, packed.X) and packed.labels.tolist() == list(range(9))


def test_npz_names(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, whatever=TABLE, labels=np.eye(9, dtype=int))  # one-hot rows are no labels
    assert load(path).X.shape == (9, 4) and load(path).labels is None
    np.savez(path, whatever=TABLE, labels=np.array([b"a", "\u00e9".encode(), b"a"] * 3))  # as HDF5 and C keep texts
    assert load(path).labels.tolist() == ["a", "\u00e9", "a"] * 3
    np.savez(path, a=TABLE, b=TABLE)
    with refuses("holds the arrays a, b"):
        load(path)


def bomb():
    """A .npz whose one member has 200 MB of zeros in 200 kB, written without holding them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("X.npy", "w") as f:
            np.lib.format.write_array_header_1_0(f, {"descr": "|u1", "fortran_order": False, "shape": (200, 1_000_000)})
            for _ in range(200):
                f.write(bytes(1_000_000))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("a.npy", b"", "not a NumPy array"),
        ("a.npy", b"text", "not a NumPy array"),
        ("a.npy", NPY[:-1], "truncated"),
        ("a.npy", NPY + b"a", "damaged"),
        ("a.npy", HUGE, "declares 319999999968 bytes"),
        ("a.npy", NPY.replace(b"(9, 4)", b"(9; 4)"), "not a NumPy array"),
        ("a.npy", NPY.replace(b"(9, 4)", b"(-9,-4)").replace(b" \n", b"\n"), "not a NumPy array"),
        ("a.npy", saved(np.save, np.array([{}]), allow_pickle=True), "Python objects"),
        ("a.npy", saved(np.save, np.array(["", ""])), "NumPy array|dtype"),
        ("a.npy", saved(np.save, np.ones((0, 3))), "empty"),
        ("a.npy", saved(np.save, np.array([[1, np.inf]])), "inf in row 0, column 1"),
        ("a.npz", b"text", "cannot be read"),
        ("a.npz", saved(np.savez), "holds the arrays .none."),
        ("a.npz", saved(np.savez, np.array([{}]), allow_pickle=True), "Python objects"),
        ("a.npz", corrupt(saved(np.savez, X=TABLE), 200), "array X is not a NumPy array .*CRC"),
        ("a.npz", saved(np.savez, X=TABLE)[:-30], "cannot be read"),
        ("a.npz", bomb, "times its compressed size"),
    ],
)
def test_bad_npy_and_npz_are_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content() if callable(content) else content)
    with refuses(match) as caught:
        load(tmp_path / name)
    assert name in str(caught.value)


def test_npz_member_with_a_lying_header(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", HUGE)
    with refuses("array X declares 319999999968 bytes"):
        load(tmp_path / "a.npz")


# ---------------------------------------------------------------------------------------------- csv
@pytest.mark.parametrize(
    "text, column, columns, labels",
    [
        ("a,b,c\n1,x,3\n4, y ,6\n", "b", ["a", "c"], ["x", "y"]),
        ("a,b,c\n1,x,3\n4,y,6\n", "2", ["a", "c"], ["x", "y"]),
        ("1,3,x\n4,6,y\n", "3", None, ["x", "y"]),
        ("a,b,c\n1,x,3\n4,y,6\n", 2, ["a", "c"], ["x", "y"]),
        ("1,3,x\n4,6,y\n", np.int64(3), None, ["x", "y"]),
        ("3,a,2\n1,1,3\n4,6,6\n", "1", None, None),  # the first row is no header, so 'a' is in a column of numbers
        ("# 2;b;c\n7;1;3\n-8;4;6\n", "2", ["b", "c"], [7, -8]),  # a name goes before a number
    ],
)
def test_a_column_of_a_table_may_be_labels(tmp_path, text, column, columns, labels):
    (tmp_path / "t.csv").write_text(text)
    if labels is None:
        with refuses("line 1, column 2 is 'a'"):
            load(tmp_path / "t.csv", label_column=column)
        return
    data = load(tmp_path / "t.csv", label_column=column)
    assert np.array_equal(data.X, [[1, 3], [4, 6]]) and data.columns == columns and data.labels.tolist() == labels


@pytest.mark.parametrize(
    "text, column, match",
    [
        ("a,b\n1,2\n", "c", "no single column 'c' for --label-column: it has a, b; or give its number, from 1 to 2"),
        ("a,a\n1,2\n", "a", "no single column 'a' .* it has a, a, so give its number, from 1 to 2"),
        ("1,2\n", "c", "so give a number from 1 to 2, or names of words"),
        ("1,2\n", "3", "no single column '3'"),
        ("1,2\n", "0", "no single column '0'"),
        ("a,b\n1,\n", "b", "an empty cell in its column of labels, b"),
        ("a,b,c\nx,1,y\n", "a", "line 2, column 3 is 'y'"),
        ("a\nx\n", "a", "nothing but labels"),
    ],
)
def test_bad_columns_of_labels_are_refused(tmp_path, text, column, match):
    (tmp_path / "t.csv").write_text(text)
    with refuses(match):
        load(tmp_path / "t.csv", label_column=column)


@pytest.mark.parametrize(
    "text, columns",
    [
        ("1,2.5\n-3e1,4\n", None),
        ("a,b\n1,2.5\n-3e1,4\n", ["a", "b"]),
        ('\ufeff"a, x";b\r\n1;2.5\r\n\r\n-3e1;4', ["a, x", "b"]),
        ("# a\tb\n1\t2.5\n-3e1\t 4 \n\n", ["a", "b"]),
    ],
)
def test_csv_is_read(tmp_path, text, columns):
    (tmp_path / "t.csv").write_bytes(text.encode())
    data = load(tmp_path / "t.csv")
    assert data.X.tolist() == [[1, 2.5], [-30, 4]] and data.columns == columns
    assert np.allclose(np.abs(data.normalise(data.X)), 1)


def test_csv_of_one_column(tmp_path):
    (tmp_path / "t.csv").write_text("height\n1\n2\n4\n")
    data = load(tmp_path / "t.csv")
    assert data.X.tolist() == [[1], [2], [4]] and data.columns == ["height"]


@pytest.mark.parametrize(
    "text, match",
    [
        (b"", "no rows of numbers"),
        (b"a,b\n", "no rows of numbers"),
        (b"a,b\n1,2\n3\n", "line 3 has 1 columns and line 1 has 2"),
        (b"1,2\n3,4,5\n", "line 2 has 3 columns"),
        (b"a,b\n1,2\n\n3,red\n", "line 4, column 2 is 'red'"),
        (b"id,2020\n1,2\n", "line 1, column 1 is 'id'"),
        (b"1,2\n3,\n", "line 2, column 2 is empty"),
        (b",\n1,2\n", "line 1, column 1 is empty"),
        (b"1,2\nnan,4\n", "line 2, column 1 is 'nan'"),
        (b"1,2\n3,-inf\n", "line 2, column 2 is '-inf'"),
        (b"1;2,5\n", "line 1, column 2 is '2,5'"),
        (b"1,1_0\n", "line 1, column 2 is '1_0'"),
        (b"a,b\n1,1e39\n1,2\n", "line 2, column 2 is '1e39', not a finite float32 number"),
        (b"\xff\xfe1,2\n", "not a text table"),
        (b"a\n" + b"1" * 200_000, "not a text table"),
    ],
)
def test_bad_csv_is_refused(tmp_path, text, match):
    (tmp_path / "t.csv").write_bytes(text)
    with refuses(match) as caught:
        load(tmp_path / "t.csv")
    assert "t.csv" in str(caught.value)


# ------------------------------------------------------------------------------------------- images
def picture(path, array, **options):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(exist_ok=True, parents=True)
    image.fromarray(array).save(path, **options)


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack([GREY, GREY + 50, GREY + 100], axis=2)


def test_folder_of_grey_images_in_order_of_path(tmp_path):
    picture(tmp_path / "b.png", GREY)
    picture(tmp_path / "a" / "z.PNG", GREY + 1)
    picture(tmp_path / "c.jpg", np.full((6, 8), 200, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._b.png").write_text("what a Mac leaves behind")
    data = load(tmp_path)
    assert data.image_shape == (6, 8) and data.X.shape == (3, 48) and data.name == tmp_path.name
    assert np.array_equal(data.X[:2] * 255, [(GREY + 1).ravel(), GREY.ravel()])
    assert np.allclose(data.X[2], 200 / 255, atol=0.01)
    assert data.labels is None  # one lies in no subfolder


def test_subfolders_of_images_are_labels(tmp_path):
    for name in ("cats/a.png", "cats/more/b.png"):
        picture(tmp_path / name, GREY)
    assert load(tmp_path).labels is None  # all of one kind
    picture(tmp_path / "dogs" / "a.png", GREY)
    assert load(tmp_path).labels.tolist() == ["cats", "cats", "dogs"]
    assert load(tmp_path / "cats").labels is None
    picture(tmp_path / ".ipynb_checkpoints" / "a.png", GREY)
    picture(tmp_path / "12" / "a.png", GREY)
    (tmp_path / "cats").rename(tmp_path / "1")
    (tmp_path / "dogs").rename(tmp_path / "2")
    assert load(tmp_path).labels.tolist() == [1, 1, 12, 2]  # in the order of the paths


def test_pictures_of_runs_are_no_data(tmp_path):
    picture(tmp_path / "a.png", GREY)
    for name in ("curves.png", "samples/0.png"):
        picture(tmp_path / "runs" / "x" / name, GREY.T)
    with refuses("8 x 6 pixels and .* 6 x 8"):
        load(tmp_path)
    for name in ("config.json", "metrics.csv"):
        (tmp_path / "runs" / "x" / name).write_text("")
    assert load(tmp_path).image_shape == (6, 8)
    assert len(load(tmp_path / "runs" / "x").X) == 2
    assert load(tmp_path / "runs" / "x" / "samples").image_shape == (8, 6)  # asked for by name, they are


def test_images_take_the_memory_of_their_copy_and_no_more():
    X = np.random.default_rng(0).random((2000, 20, 20), np.float32)
    tracemalloc.start()
    data = from_array(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.02 * data.X.nbytes


def test_masked_values_are_refused():
    table = np.ma.masked_array(TABLE, mask=TABLE > TABLE.mean())
    with refuses(f"array has {np.ma.count_masked(table)} masked values"):
        from_array(table)
    assert from_array(np.ma.masked_array(TABLE)).X.shape == TABLE.shape


def test_the_columns_of_a_table_keep_their_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("# C#,# of rooms,kind\n" + "1,2,x\n3,4,y\n")
    data = load(path, label_column="kind")
    assert data.columns == ["C#", "# of rooms"] and data.labels.tolist() == ["x", "y"]
    path.write_text("kind,when,what\n" + "x,1,1\ny,1.0000001,2\n")
    with refuses("t.csv's column when varies by"):
        load(path, label_column="kind")
    path.write_text('"a; cm",b\n1,2\n3,4\n')
    assert load(path).columns == ["a; cm", "b"]
    path.write_text("kind,a\nx,1\n,2\n")
    with refuses("line 3 has an empty cell in its column of labels, kind"):
        load(path, label_column="kind")


def test_labels_are_found_under_either_name(tmp_path):
    np.savez(tmp_path / "a.npz", X=TABLE, y=np.linspace(0, 1, 9), labels=np.arange(9))
    assert load(tmp_path / "a.npz").labels.tolist() == list(range(9))
    np.savez(tmp_path / "a.npz", whatever=TABLE, y=np.linspace(0, 1, 9), labels=np.arange(9))
    assert load(tmp_path / "a.npz").labels.tolist() == list(range(9))


@pytest.mark.parametrize("labels", [np.arange(8), np.linspace(0, 1, 10), np.array(["a"] * 8)])
def test_more_or_fewer_labels_than_rows_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", X=TABLE, labels=labels)
    with refuses(f"a.npz has {len(labels)} labels for 9 rows: give one for each, or none"):
        load(tmp_path / "a.npz")


def test_one_colour_image_makes_all_colour(tmp_path):
    picture(tmp_path / "a.png", GREY)
    picture(tmp_path / "b.png", COLOUR)
    data = load(tmp_path)
    assert data.image_shape == (6, 8, 3)
    assert np.array_equal(data.X[0].reshape(6, 8, 3) * 255, np.repeat(GREY[..., None], 3, axis=2))
    assert np.array_equal(data.X[1].reshape(6, 8, 3) * 255, COLOUR)


def test_mixed_sizes_need_image_size(tmp_path):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200  # the central square
    picture(tmp_path / "a.png", wide)
    picture(tmp_path / "b.png", GREY)
    with refuses(r"a.png has 12 x 4 pixels and .*b.png has 8 x 6: pass --image-size N"):
        load(tmp_path)
    data = load(tmp_path, image_size=2)
    assert data.image_shape == (2, 2) and np.allclose(data.X[0] * 255, 200, atol=10)  # edges bleed a little
    for size in (0, 5000):
        with refuses(f"--image-size {size} is out of range"):
            load(tmp_path, image_size=size)


def test_bad_images_are_refused(tmp_path):
    with refuses("holds no PNG or JPEG"):
        load(tmp_path)
    picture(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"", b"text", whole[:700], corrupt(whole, 60)):
        (tmp_path / "a.png").write_bytes(content)
        with refuses("a.png is not a readable image"):
            load(tmp_path)
    picture(tmp_path / "a.png", GREY, format="BMP")  # no other decoder is let at it
    with refuses("a.png is not a readable image"):
        load(tmp_path)
    picture(tmp_path / "a.png", np.full((3, 3), 40_000, np.uint16))
    with refuses("16 bits"):
        load(tmp_path)
    picture(tmp_path / "a.png", GREY)
    with refuses("8 x 6 pixels, more than 40"):
        files.read_images(tmp_path, max_pixels=40)


# --------------------------------------------------------------------------------------------- load
@pytest.mark.parametrize(
    "name, options, match",
    [
        ("mnits", {}, "'mnits' is no data set: give one of digits, mnist, .* folder of PNG or JPEG"),
        ("", {}, "'' is no data set"),
        ("notes.txt", {}, "'notes.txt' is no data set"),
        ("a\0b", {}, "is no data set"),
        ("x" * 5000, {}, "cannot read"),
        ("absent.csv", {}, "cannot read 'absent.csv' .No such file"),
        ("absent.npy", {}, "cannot read 'absent.npy'"),
        ("~nobody-of-this-name/a.npy", {}, "cannot read '~nobody"),
        ("mnist", {"data_dir": "~nobody-of-this-name"}, "--data-dir ~nobody-of-this-name is not a folder"),
        ("absent.npz", {}, "absent.npz"),
        ("digits", {"image_size": 8}, "--image-size 8 is for folders"),
        ("digits", {"label_column": "y"}, "--label-column y is for .csv files, not for 'digits'"),
        ("a.npy", {"label_column": "y"}, "--label-column y is for .csv files"),
    ],
)
def test_bad_names_are_refused(tmp_path, monkeypatch, name, options, match):
    monkeypatch.chdir(tmp_path)
    with refuses(match):
        load(name, **options)


def test_a_name_goes_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "digits" / "a.png", GREY)
    assert len(load("digits").X) == 1797 and load("./digits").image_shape == (6, 8)
    with refuses("--image-size 8 is for folders"):
        load("digits", image_size=8)


def test_shift_and_scale_may_be_numbers():
    data = Dataset("d", 3, scale=2)
    assert data.scale.tolist() == [2, 2, 2] and data.shift.dtype == np.float32


def test_image_shape_may_be_said_again():
    X = np.zeros((3, 2, 4))
    assert from_array(X, image_shape=(2, 4)).image_shape == from_array(X, image_shape=[2, 4]).image_shape == (2, 4)
    with refuses("leave image_shape out"):
        from_array(X, image_shape=(4, 2))


def test_npy_of_version_2_is_read(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, TABLE, version=(2, 0))
    assert np.array_equal(files.read_npy(tmp_path / "a.npy"), TABLE)


def test_the_arrays_of_an_archive_together_have_a_limit(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(100), b=np.zeros(100))
    assert len(files.read_archive(tmp_path / "a.npz", most=2000)) == 2
    with refuses("would take .* bytes"):
        files.read_archive(tmp_path / "a.npz", most=1500)
