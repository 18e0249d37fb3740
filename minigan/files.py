"""Files: IDX (MNIST), .npy, .npz, .csv and folders of images, read with suspicion; any file, written in one move.

A file may be truncated, damaged or hostile. Every reader therefore compares the size that a header declares
with the size that is there before it takes memory, never unpickles, and turns each failure into a
MiniganError: one sentence with the file, what is wrong with it and what to do. The readers return plain
arrays as the file holds them; data.py gives them meaning.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import stat
import sys
import textwrap
from pathlib import Path

import numpy as np

from .errors import MiniganError

MAX_BYTES = 4 * 2**30  # no single array read here may be larger
DEFLATE_RATIO = 1032  # the most that zlib's format can compress: more is a lie in the header
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 100  # what is larger when decompressed, and by more than this, is a bomb
MAX_DOWNLOAD = 64 * 2**20  # bytes; the largest published file has 26 MB
TIMEOUT = 20  # seconds without an answer before the next mirror is tried
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
DOWNLOAD_HINT = "put the four IDX files in a folder and pass --data-dir FOLDER"

# Published copies of the original files, tried in turn.
MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": (
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
}

# sha256 of the uncompressed bytes: gzip headers differ between copies (they hold a date), contents do not.
CONTENT = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}


# ----------------------------------------------------------------------------- any file, safely
def opened(path):
    """A file open for reading its bytes. A pipe or a device, which might never end, is refused."""
    f = open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0)))
    if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
        f.close()
        raise MiniganError(f"{path} is not a file: give one")
    return f


@contextlib.contextmanager
def replacing(path, before=lambda: None):
    """A new file to write to, which takes the place of ``path`` when all of it is on the disk.

    A reader, or a crash at any moment, finds the old file or the new one, never a part. ``before`` is called
    when the new file is complete. After an error nothing has changed.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.unlink(missing_ok=True)  # left by a crash; and "x" never follows a link out of the folder
        with open(temporary, "xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        before()
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write(path, content):
    """Write a file of text or bytes in one move."""
    with replacing(path) as f:
        f.write(content if isinstance(content, bytes) else content.encode())


def sync_folder(folder):
    """Have the names in a folder on the disk, as fsync has a file's content. Not every system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock(folder):
    """Keep other processes out of a folder; returns a function that lets them in again.

    The system itself lets go when this process ends, in whatever way. The folder is locked, or, where the
    system cannot lock folders (Windows, some network file systems), a file .lock in it; where it cannot lock at
    all there is no protection. Raises MiniganError if another process has the lock.
    """
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock

        take = lambda f: flock(f, LOCK_EX | LOCK_NB)
    except ImportError:
        import msvcrt

        take = lambda f: msvcrt.locking(f, msvcrt.LK_NBLCK, 1)
    for place, flags in ((Path(folder), os.O_RDONLY), (Path(folder, ".lock"), os.O_RDWR | os.O_CREAT)):
        try:
            f = os.open(place, flags)
        except OSError:
            continue
        try:
            take(f)
            return lambda f=f: os.close(f)
        except OSError as err:
            os.close(f)
            if err.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise MiniganError(f"{folder} is in use by another run: wait for it, or choose another folder") from err
    return lambda: None


def _check_size(declared, stored, where, most=MAX_BYTES):
    """Raise MiniganError if so many bytes are too many, or a bomb, coming from so many compressed ones."""
    ratio = declared / max(stored, 1)
    if declared > most or ratio > DEFLATE_RATIO + 1 or (declared > BOMB_BYTES and ratio > BOMB_RATIO):
        raise MiniganError(
            f"{where} would take {declared} bytes, {ratio:.0f} times its compressed size (limit {most}, or "
            f"{BOMB_BYTES} and {BOMB_RATIO} times): save it uncompressed, or less of it"
        )


# ------------------------------------------------------------------------------ IDX, MNIST's format
def read_idx(path, sha256: str | None = None) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzip-compressed -> uint8 array of the declared shape.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the data. `sha256` (hex), if given, must be that of the uncompressed
    bytes. Raises MiniganError for a wrong magic number, a size that disagrees with the header, damage, a
    wrong checksum. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", file formats.
    """
    import gzip
    import zlib

    path = Path(path)
    size = path.stat().st_size
    try:
        with opened(path) as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            f = gzip.GzipFile(fileobj=plain) if zipped else plain
            header = f.read(4)
            if len(header) < 4 or header[:3] != b"\0\0\x08" or not 1 <= header[3] <= 4:
                raise MiniganError(
                    f"{path} is not an IDX file of unsigned bytes (it starts with "
                    f"{header.hex() or 'nothing'}, not 000008..): give the published file"
                )
            header += f.read(4 * header[3])
            shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4))
            declared = len(header) + math.prod(shape)
            most = DEFLATE_RATIO * size if zipped else size
            if len(header) < 4 + 4 * header[3] or declared > min(most, MAX_BYTES):
                raise MiniganError(
                    f"{path} declares shape {shape} but has only {size} bytes: it is "
                    "truncated or damaged, so fetch it again"
                )
            if zipped:
                _check_size(declared, size, path)
            # One byte more than declared: reaching the end makes gzip verify its checksum, and no more than
            # that is ever decompressed.
            raw = header + f.read(declared - len(header) + 1)
    except (OSError, EOFError, zlib.error) as err:
        raise MiniganError(f"{path} cannot be read ({err}): fetch it again") from err
    if len(raw) != declared:
        raise MiniganError(
            f"{path} holds {'more' if len(raw) > declared else 'fewer'} than the {declared} "
            "bytes that its header declares: it is damaged, so fetch it again"
        )
    import hashlib  # it loads OpenSSL: not when minigan is imported

    digest = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and digest != sha256:
        raise MiniganError(
            f"{path} is not the published file (sha256 of its content {digest[:12]}..., "
            f"expected {sha256[:12]}...): it is damaged or of another set, so fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape)


def published(name: str, data_dir=None) -> list[np.ndarray]:
    """The four files of 'mnist' or 'fashion-mnist': train images, train labels, test images, test labels.

    Images (N, 28, 28) uint8, labels (N,) uint8. Each file is looked for in data_dir/name, data_dir and the
    cache folder ($MINIGAN_CACHE, else ~/.cache/minigan), with and without .gz, and is then downloaded into
    the cache. Raises MiniganError if a file in data_dir is not the published one, or if a file is in none
    of them and no mirror sends it.
    """
    folders = []
    if data_dir is not None:
        data_dir = Path(os.path.expanduser(data_dir))
        if not data_dir.is_dir():
            raise MiniganError(f"--data-dir {data_dir} is not a folder: give the one with {name}'s files")
        folders = [data_dir / name, data_dir]
    cache = Path(os.path.expanduser(os.environ.get("MINIGAN_CACHE") or "~/.cache/minigan"), name)
    return [_find(name, file, digest, folders, cache) for file, digest in CONTENT[name].items()]


def _find(name, file, digest, folders, cache):
    spellings = (file, file[:-3], file[:-3].replace("-idx", ".idx"))  # archives differ in this
    for folder in [*folders, cache]:
        for path in (folder / spelling for spelling in spellings):
            if path.is_file():
                try:
                    return read_idx(path, digest)
                except MiniganError:
                    if folder != cache:  # the user's own file is reported; a damaged cache is fetched anew
                        raise
    return _download(name, file, digest, folders, cache)


def _download(name, file, digest, folders, cache):
    from http.client import HTTPException

    part = cache / f"{file}.{os.getpid()}.part"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as err:
        raise MiniganError(
            f"cannot write to the cache folder {cache} ({err.strerror}): set "
            f"MINIGAN_CACHE to a folder you may write to, or {DOWNLOAD_HINT}"
        ) from err
    failures = []
    try:
        for mirror in MIRRORS[name]:
            try:
                _fetch(mirror + file, part)
                array = read_idx(part, digest)
                os.replace(part, cache / file)  # in one move: an interrupted run leaves no half file
                return array
            except MiniganError:
                failures.append(f"{mirror} sent something else than the published file")
            except (OSError, HTTPException, ValueError) as err:
                failures.append(f"{mirror} failed: {err}")
    finally:
        part.unlink(missing_ok=True)
    looked = ", ".join(map(str, [*folders, cache]))
    raise MiniganError(
        f"{file} of {name} is not in {looked}, and could not be downloaded "
        f"({'; '.join(failures)}): connect to the network, or {DOWNLOAD_HINT}"
    )


def _fetch(url, path):
    """Copy `url` to `path`, with a progress bar if stderr is a terminal. Raises OSError, HTTPException."""
    import urllib.request

    from tqdm import tqdm

    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(path, "wb") as f:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(
            total=total, desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True, file=sys.stderr, disable=None
        ) as bar:  # None: off when stderr is no terminal
            while chunk := answer.read(2**16):
                f.write(chunk)
                bar.update(len(chunk))
                if f.tell() > MAX_DOWNLOAD:
                    raise OSError(f"more than {MAX_DOWNLOAD} bytes")


# ---------------------------------------------------------------------------------- NumPy's formats
def _read_array(f, size, where, most=MAX_BYTES):
    """One array in .npy format from the open file f of `size` bytes, its declared size checked first."""
    formats = {  # length of the header's own length, reader; version 3 is only for tables with field names
        (1, 0): (2, np.lib.format.read_array_header_1_0),
        (2, 0): (4, np.lib.format.read_array_header_2_0),
    }
    try:
        width, read_header = formats[np.lib.format.read_magic(f)]
        length = f.read(width)
        header = f.read(min(int.from_bytes(length, "little"), 2**16))
        shape, fortran_order, dtype = read_header(io.BytesIO(length + header))
        if dtype.hasobject:
            raise MiniganError(
                f"{where} holds Python objects, which would have to be unpickled: save numbers, X.astype(np.float32)"
            )
        declared, there = math.prod(shape) * dtype.itemsize, size - f.tell()
        if declared != there or declared > most:
            raise MiniganError(
                f"{where} declares {declared} bytes, shape {shape} of {dtype}, and holds "
                f"{there} (at most {most} are read): it is truncated, damaged or too "
                "large, so save it again"
            )
        data = np.frombuffer(f.read(declared), dtype, math.prod(shape))
        return data.reshape(shape, order="F" if fortran_order else "C")
    except MiniganError:
        raise
    except Exception as err:  # a damaged file can fail anywhere in the parsers of NumPy and zipfile
        raise MiniganError(f"{where} is not a NumPy array ({err}): save it again") from err


def read_npy(path) -> np.ndarray:
    """The array in a .npy file, never unpickled. Raises MiniganError if it is damaged or holds objects."""
    with opened(path) as f:
        return _read_array(f, os.fstat(f.fileno()).st_size, path)


def read_archive(path, choose=tuple, most=MAX_BYTES) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, never unpickled: those whose names choose(all the names) returns.

    most: bytes that they may take in all. Nothing is written to the disk, whatever the names. Raises MiniganError
    if the archive is damaged or a zip bomb, or holds objects; OSError if there is no such file.
    """
    import zipfile

    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                if len(members) != len(archive.infolist()):
                    raise MiniganError(f"{path} holds two arrays of one name: save it again")
                chosen = {name: members[name] for name in choose(members)}
                _check_size(sum(m.file_size for m in chosen.values()), size, path, most)
                if sum(m.compress_size for m in chosen.values()) > size:
                    raise MiniganError(f"{path} declares members that are larger than itself: save it again")
                arrays = {}
                for name, info in chosen.items():
                    where = f"{path}: array {listed([name])}"
                    _check_size(info.file_size, info.compress_size, where, most)
                    with archive.open(info) as f:
                        arrays[name] = _read_array(f, info.file_size, where, most)
                return arrays
        except MiniganError:
            raise
        except Exception as err:  # zipfile raises half a dozen kinds for a damaged archive
            raise MiniganError(f"{path} cannot be read ({err}): write it again with np.savez") from err


def listed(names):
    """Names from a file for a message, without what would disturb a terminal."""
    return textwrap.shorten(", ".join(name if name.isprintable() else ascii(name) for name in names), 200)


def read_npz(path) -> tuple[np.ndarray, np.ndarray | None]:
    """(X, labels) of a .npz file, never unpickled.

    X is the array called X, x, images or data, or the only one beside the labels; labels the one called y
    or labels that holds one integer or text a row, else None. Raises MiniganError if the archive is damaged, a
    zip bomb or ambiguous, or holds objects, or more or fewer labels than rows.
    """

    def choose(names):
        label_keys = [k for k in ("y", "labels") if k in names]
        keys = [k for k in ("X", "x", "images", "data") if k in names][:1]
        keys = keys or [k for k in names if k not in label_keys]
        if len(keys) != 1:
            raise MiniganError(
                f"{path} holds the arrays {listed(names) or '(none)'}: name the one to train on X, x, images or data"
            )
        return keys + label_keys

    X, *found = read_archive(path, choose).values()
    for labels in found:
        if labels.dtype.kind == "S":
            labels = np.char.decode(labels, "utf-8", "replace")
        if labels.dtype.kind in "biuU" and labels.shape == X.shape[:1]:
            return X, labels
        if labels.ndim == 1 and X.ndim and len(labels) != len(X):
            raise MiniganError(f"{path} has {len(labels)} labels for {len(X)} rows: give one for each, or none")
    return X, None  # or only targets of a regression, one-hot rows


# ---------------------------------------------------------------------------------------------- CSV
LARGEST = float(np.finfo(np.float32).max)


def _number(cell):
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_0 as 10
    except ValueError:
        return None


def read_csv(path, label_column: str | None = None) -> tuple[np.ndarray, list[str] | None, np.ndarray | None]:
    """(X, columns, labels) of a text table: (N, features) float64, and the names in its header row or None.

    Columns are separated by tabs if the first line holds one, else by semicolons likewise, else by commas.
    The first row is a header if none of its cells is a number. Blank lines are skipped. label_column, a name
    in the header or a number from 1, is left out of X and columns: its cells are the labels (N,), texts. Raises
    MiniganError, with the line's number, for text, an empty cell, NaN, infinity, or a row of another length, and
    for a label_column that is not there.
    """
    import csv
    from array import array

    columns, width, first, label_at = None, None, 0, None
    values, labels = array("d"), []  # 8 bytes a number, where a list of Python floats takes 32
    try:
        with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as f:
            line = re.sub('"[^"]*"', "", next((line for line in f if line.strip()), ""))
            f.seek(0)
            rows = csv.reader(f, delimiter=next((d for d in "\t;" if d in line), ","))
            for row in rows:
                if not any(cell.strip() for cell in row) and len(row) < 2:
                    continue
                numbers = [_number(cell) for cell in row]
                if width is None:
                    width, first = len(row), rows.line_num
                    if any(cell.strip() for cell in row) and all(number is None for number in numbers):
                        columns = [cell.strip() for cell in row]
                        columns[0] = columns[0].lstrip("# \t")  # np.savetxt writes "# a,b"
                    label_at = None if label_column is None else _find_column(path, label_column, columns, width)
                    if columns:
                        continue
                if len(row) != width:
                    raise MiniganError(
                        f"{path}, line {rows.line_num} has {len(row)} columns and line "
                        f"{first} has {width}: give every row the same number"
                    )
                if label_at is not None:
                    labels.append(row[label_at].strip())
                    if not labels[-1]:
                        raise MiniganError(
                            f"{path}, line {rows.line_num} has an empty cell in its column of labels, {label_column}: "
                            "fill it in"
                        )
                    del row[label_at], numbers[label_at]
                for k, number in enumerate(numbers):
                    if number is None or not abs(number) < LARGEST:
                        what = repr(row[k][:40]) if row[k].strip() else "empty"
                        raise MiniganError(
                            f"{path}, line {rows.line_num}, column {k + 1 + (label_at is not None and k >= label_at)} "
                            f"is {what}, not a finite float32 number: remove or fill in such rows, drop columns of "
                            "text, name one of labels with --label-column, and write decimals with a point"
                        )
                values.extend(numbers)
    except (csv.Error, UnicodeError) as err:
        raise MiniganError(f"{path} is not a text table ({err}): save it as CSV in UTF-8") from err
    if not values:
        if labels:
            raise MiniganError(f"{path} holds nothing but labels: give a column of numbers, too")
        raise MiniganError(f"{path} holds no rows of numbers: give at least one")
    if label_at is None:
        return np.frombuffer(values).reshape(-1, width), columns, None
    columns = columns and columns[:label_at] + columns[label_at + 1 :]
    return np.frombuffer(values).reshape(-1, width - 1), columns, np.array(labels)


def _find_column(path, wanted, columns, width):
    """Where the column with this name, or this number, from 1, stands: its index."""
    if columns and columns.count(wanted) == 1:
        return columns.index(wanted)
    if wanted in map(str, range(1, width + 1)):
        return int(wanted) - 1
    there = (
        f"it has {listed(columns)}"
        if columns
        else (
            f"its first row is taken for data, as it holds a number, so give a number from 1 to {width}, "
            "or names of words"
        )
    )
    if columns:
        there += f"{', so' if wanted in columns else '; or'} give its number, from 1 to {width}"
    raise MiniganError(f"{path} has no single column '{wanted}' for --label-column: {there}")


# -------------------------------------------------------------------------------- folders of images
def holds_a_run(folder):
    """Whether a folder looks like that of a run, whose pictures are nobody's data."""
    return all((folder / name).exists() for name in ("config.json", "metrics.csv"))


def read_images(
    folder, image_size: int | None = None, max_pixels: int = 64_000_000
) -> tuple[np.ndarray, np.ndarray | None]:
    """A folder's PNG and JPEG files, subfolders too, sorted by path -> (N, h, w[, 3]) uint8, and labels.

    Pictures in the folders of minigan's own runs are left out.

    If every file lies in a subfolder, of which there are two or more, their names are the labels (N,), else None.

    (N, h, w) if every file is greyscale by its own account, else all become RGB; transparency is dropped.
    With image_size, the central square of each is resized to image_size x image_size pixels. Raises
    MiniganError if there is no image, one is damaged, 16-bit or above max_pixels, or the sizes differ.
    """
    from PIL import Image, ImageOps

    if image_size is not None and not 1 <= image_size <= 4096:
        raise MiniganError(f"--image-size {image_size} is out of range: give 1 to 4096 pixels")
    folder = Path(folder)
    runs = {log.parent for log in folder.rglob("metrics.csv") if holds_a_run(log.parent)} - {folder}
    paths = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES
        and p.is_file()
        and runs.isdisjoint(p.parents)
        and not any(part[0] == "." for part in p.relative_to(folder).parts)  # .ipynb_checkpoints and the like
    )
    if not paths:
        raise MiniganError(f"{folder} holds no PNG or JPEG image: give a folder that does")
    images = []
    for path in paths:
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if math.prod(image.size) > max_pixels:
                    raise MiniganError(
                        f"{path} has {image.width} x {image.height} pixels, more than "
                        f"{max_pixels}: make it smaller or take it away"
                    )
                if image.mode.startswith("I"):  # converting to 8 bits would clip, not scale
                    raise MiniganError(f"{path} has 16 bits a pixel: convert it to 8")
                grey = image.mode in ("1", "L", "LA")
                image = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
        except MiniganError:
            raise
        except Exception as err:  # a damaged image can fail anywhere in Pillow's decoders
            raise MiniganError(f"{path} is not a readable image ({err}): mend it or take it away") from err
        if image_size is not None:
            image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
        images.append(np.asarray(image))
        shape, shape_0 = images[-1].shape, images[0].shape
        if shape[:2] != shape_0[:2]:
            raise MiniganError(
                f"{paths[0]} has {shape_0[1]} x {shape_0[0]} pixels and {path} has "
                f"{shape[1]} x {shape[0]}: pass --image-size N to make all N x N"
            )
        if math.prod(shape) * len(paths) > MAX_BYTES:
            raise MiniganError(
                f"{folder} holds {len(paths)} images of {shape[1]} x {shape[0]} pixels, more "
                f"than {MAX_BYTES} bytes: pass a smaller --image-size N"
            )
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    classes = [path.relative_to(folder).parts[:-1][:1] for path in paths]  # () for a file of the folder itself
    labelled = () not in classes and len(set(classes)) > 1
    return np.stack(images), np.array([name for (name,) in classes]) if labelled else None
