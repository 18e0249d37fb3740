"""Save a GAN in the middle of training, load it, and go on as if nothing had happened, bit for bit.

A checkpoint is an ``.npz`` file without pickle: every array of the training state, and one JSON text (``meta``) with
the rest. A sha256 of all of it lies inside, so that damage is noticed. Files are written under a temporary name,
flushed to the disk and renamed; the checkpoint before the last is kept as ``previous-checkpoint.npz``.
"""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from minigan import __version__, files
from minigan.batches import Batches
from minigan.data import Dataset, whole_or_text
from minigan.errors import MiniganError
from minigan.gan import GAN, STREAMS
from minigan.masked import MaskedGAN
from minigan.mlp import parse_layers

NAME, PREVIOUS = "checkpoint.npz", "previous-checkpoint.npz"
FORMAT = 1
ALSO = ("order", "shift", "scale", "centres", "cluster_of")  # arrays that training does not change in place
MEMORY, MEMORY_PER_BYTE = 2**30, 1000  # a checkpoint may ask for this much, and as much for each byte of its own


def save(folder, gan, extra=None, keep_previous=True):
    """Write folder/checkpoint.npz. ``extra``: a dict of further arrays to keep, returned by ``load``.

    keep_previous=False: the checkpoint that is there is damaged, and must not take the place of the one before it.
    Raises MiniganError for a MaskedGAN.
    """
    if isinstance(gan, MaskedGAN):
        raise MiniganError("a checkpoint cannot hold a masked GAN and its function of masks; keep G.theta, D.theta")
    if gan.data.X is None and gan.data.draw is None:
        raise MiniganError("this GAN was loaded without its data and cannot be saved; load it with them")
    arrays, meta = _state(gan)
    arrays.update({f"extra/{name}": array for name, array in (extra or {}).items()})
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    arrays["checksum"] = np.frombuffer(_checksum(arrays), np.uint8)
    path = Path(folder, NAME)

    def keep():
        if keep_previous and path.exists():
            os.replace(path, path.with_name(PREVIOUS))

    with files.replacing(path, before=keep) as file:
        np.savez(file, **arrays)


def load(folder, data=None, **changed):
    """(gan, extra, note) from folder/checkpoint.npz, or from the one before if that is damaged; ``note`` then says so.

    data: the Dataset to go on training with; its content must be what the run was started with. Without it the
    GAN can sample and judge, but not train. ``changed``: options of the GAN that are to differ
    (steps, backend), and ``ranks``. ``gan.saved_on`` is the backend it was saved on: on another one it goes on, but
    with other random numbers. Raises MiniganError if there is no readable checkpoint, or other data.
    """
    reasons = []
    for path in (Path(folder, NAME), Path(folder, PREVIOUS)):
        try:
            arrays, meta = _read(path)
            break
        except FileNotFoundError:
            reasons.append(f"{path} does not exist")
        except OSError as error:
            reasons.append(f"{path} cannot be read ({error.strerror or error})")
        except Exception as error:  # a damaged file can fail anywhere in the parsers of NumPy and zipfile
            reasons.append(f"{path} is damaged ({error.__cause__ or error})")
    else:
        if not Path(folder).is_dir():
            raise MiniganError(f"{folder} holds no run (there is no such folder); give the folder of a run")
        raise MiniganError(
            f"no checkpoint can be read: {'; '.join(reasons)}; give the folder of a run that has saved one, or start "
            "again in another folder"
        )
    try:
        if data is not None and not _are_the_same(data, meta["data"]):
            raise MiniganError(
                f"the data '{data.name}' is not what the run in {folder} was trained on; restore it, or start a new run"
            )
        gan = GAN(**{**meta["options"], **changed})
        _check_sizes(gan, arrays, meta, data, os.path.getsize(path))
        _restore(gan, arrays, meta, data)
    except MiniganError:
        raise
    except Exception as error:  # its checksum is right, so somebody made it so
        raise MiniganError(
            f"{path} does not make sense ({type(error).__name__}: {error}); start a new run, or restore the file"
        ) from error
    extra = {name.removeprefix("extra/"): array for name, array in arrays.items() if name.startswith("extra/")}
    return gan, extra, "; ".join(reasons)


def _are_the_same(data, saved):
    """Whether ``data`` are those of a checkpoint: perhaps in a file of another name, or with labels that the run has
    not been told of."""
    named = [data, replace(data, name=saved["name"])]
    unlabelled = [] if saved.get("label_shares") else [replace(d, labels=None, label_shares=None) for d in named]
    return any(d.fingerprint() == saved["fingerprint"] for d in named + unlabelled)


def read_config(folder):
    """The options of the run in ``folder``, a dict. Raises MiniganError if there is no readable config.json."""
    path = Path(folder, "config.json")
    try:
        with files.opened(path) as file:
            config = json.loads(file.read().decode())
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
        wanted = {"data": str, "image_size": int | None}
        wanted |= dict.fromkeys(("data_dir", "label_column", "recipe"), str | None)
        for name, kinds in wanted.items():
            if not isinstance(config.setdefault(name, None), kinds):
                raise ValueError(f"'{name}' is {config[name]!r}")
        return config
    except (FileNotFoundError, NotADirectoryError):
        raise MiniganError(f"{folder} holds no run (there is no config.json); give the folder of a run") from None
    except (OSError, ValueError, RecursionError) as error:
        raise MiniganError(f"{path} cannot be read ({error}); restore it, or start a new run") from error


def _live_arrays(gan):
    """The arrays that training changes, by name: what is saved, and where it is put back."""
    recorded = gan.step % gan.report_every
    arrays = {
        "theta_G": gan.G.theta, "theta_D": gan.D.theta, "averaged": gan.averaged.flat,
        "record_D": gan.record_D[:recorded], "record_G": gan.record_G[:recorded],
    }  # fmt: skip
    for name, optimizer in (("optimizer_G", gan.optimizer_G), ("optimizer_D", gan.optimizer_D)):
        arrays.update({f"{name}/{key}": array for key, array in optimizer.state.items()})
    return arrays


def _state(gan):
    """(arrays by name, a dict for JSON): everything that the next training step depends on."""
    order, position = gan.batches.state()
    arrays = {name: gan.backend_used.to_host(array) for name, array in _live_arrays(gan).items()}
    arrays.update(order=order, shift=gan.data.shift, scale=gan.data.scale)
    if gan.clusters:
        arrays["centres"] = gan.centres
        if gan.cluster_parts:  # else each centre has a cluster of its own
            arrays["cluster_of"] = gan.cluster_of
    meta = {
        "format": FORMAT,
        "version": __version__,
        "options": gan.options(),
        "step": gan.step,
        "position": position,
        "backend": gan.backend_used.name,
        "powers": [gan.optimizer_G.powers, gan.optimizer_D.powers],
        "random": {name: _generator_state(rng) for name, rng in vars(gan.rng).items()},
        "data": {
            "name": gan.data.name, "features": gan.data.features, "image_shape": gan.data.image_shape,
            "columns": gan.data.columns, "label_shares": gan.data.label_shares, "fingerprint": gan.data.fingerprint(),
        },
        "cluster_shares": gan.classes.label_shares if gan.clusters else None,
    }  # fmt: skip
    return arrays, meta


def _check_sizes(gan, arrays, meta, data, size):
    """Raise MiniganError, before any memory is taken, if the options ask for what a file of this size cannot be of."""
    features, m, itemsize = meta["data"]["features"], gan.batch_size, np.dtype(gan.dtype).itemsize
    classes = len(_label_shares(meta["data"].get("label_shares")) or {}) if gan.conditional else gan.clusters
    asked = 3 * m * gan.report_every
    for name, layers, passes in (
        ("theta_G", parse_layers(gan.generator, gan.latent_dim + classes, features, beside=classes), 1),
        ("theta_D", parse_layers(gan.discriminator, features + classes, 1, beside=classes), 3),
    ):
        n = sum(math.prod(shape) for layer in layers for shape in layer.shapes)
        if arrays[name].shape != (n,):
            _refuse(name, arrays[name], gan.dtype, (n,))
        asked += passes * m * sum(layer.n_out for layer in layers)
    shapes = {"shift": (features,), "scale": (features,)}
    if gan.clusters:
        cluster_of = _cluster_of(gan, arrays)
        shapes["centres"] = len(cluster_of), features
        if cluster_of.ndim != 1 or set(cluster_of.tolist()) != set(range(gan.clusters)):
            raise ValueError(f"cluster_of, of shape {cluster_of.shape}, does not name {gan.clusters} clusters")
    for name, wanted in shapes.items():
        if arrays[name].shape != wanted:
            _refuse(name, arrays[name], "float32", wanted)
    if asked * itemsize > MEMORY + MEMORY_PER_BYTE * size:
        raise MiniganError(
            f"a checkpoint of {size} bytes asks for {asked * itemsize} bytes of memory (batch size {m}, report-every "
            f"{gan.report_every}); start a new run"
        )
    shape = meta["data"]["image_shape"]
    if shape is not None and (math.prod(shape) != features or len(shape) not in (2, 3)):
        raise ValueError(f"images of shape {shape} do not have {features} pixels")
    order, position = arrays["order"], meta["position"]
    if data is not None and order.shape != (0,):
        stream = gan.batch_size * Batches.BLOCK, features + classes
        whole = (stream, np.dtype(gan.dtype)) if data.X is None else ((len(data.X),), np.dtype(np.int64))
        if (order.shape, order.dtype) != whole:
            _refuse("order", order, *whole[::-1])
    for name, number, most in (("position", position, len(order)), ("step", meta["step"], math.inf)):
        if type(number) is not int or not 0 <= number <= most:
            raise ValueError(f"{name} is {number!r}")


def _cluster_of(gan, arrays):
    return arrays["cluster_of"] if gan.cluster_parts else np.arange(gan.clusters)


def _of_other_rows(record, columns, halves):
    """A record of logits, (steps, columns), from one of more or fewer rows of each batch, repeated or left out.

    Processes that divide a batch record their own rows, and the first one saves. halves: 2 if the real rows' logits
    stand before the fake ones'. Raises ValueError for a record that has no such halves.
    """
    steps, m = len(record), record.shape[1] // halves
    if not m or m * halves != record.shape[1]:
        raise ValueError(f"a record has {record.shape[1]} logits for each step")
    return record.reshape(steps, halves, m)[..., np.arange(columns // halves) % m].reshape(steps, columns)


def _restore(gan, arrays, meta, data):
    about = meta["data"]
    trained_on = data or Dataset(
        name=about["name"], features=about["features"], columns=about["columns"],
        image_shape=about["image_shape"] and tuple(about["image_shape"]),
        shift=arrays["shift"], scale=arrays["scale"],
        label_shares=_label_shares(about.get("label_shares")),
    )  # fmt: skip
    found = (arrays["centres"], _cluster_of(gan, arrays)) if gan.clusters else None
    gan.build(trained_on, False, found, _label_shares(meta.get("cluster_shares")))
    gan.step, gan.saved_on = meta["step"], meta["backend"]
    live = _live_arrays(gan)
    unknown = [name for name in arrays if not (name in live or name in ALSO or name.startswith("extra/"))]
    if unknown:
        raise ValueError(f"it holds {files.listed(unknown)}")
    for name, out in live.items():
        value = arrays[name]
        if value.shape == out.shape and value.dtype == out.dtype:
            out[...] = gan.backend_used.to_device(value)
        elif name.startswith("record_") and value.dtype == out.dtype and value.ndim == 2 and len(value) == len(out):
            out[...] = gan.backend_used.to_device(
                _of_other_rows(value, out.shape[1], halves=2 if name == "record_D" else 1)
            )
        else:
            _refuse(name, value, out.dtype, out.shape)
    for optimizer, powers in zip((gan.optimizer_G, gan.optimizer_D), meta["powers"], strict=True):
        if len(powers) != len(optimizer.powers) or not all(-1 <= power <= 1 for power in powers):
            raise ValueError(f"powers are {powers}")
        optimizer.powers = [float(power) for power in powers]
    gan.batches.restore(arrays["order"], meta["position"])
    for name, rng in vars(gan.rng).items():
        state = meta["random"][name]
        if isinstance(rng, np.random.Generator) and state is not None:
            state["state"]["state"] = np.array(state["state"]["state"], np.uint64)
            rng.bit_generator.state = state
        else:
            # CuPy gives no access to the state of its generators, and the CPU's is of no use to the GPU: a run that
            # comes from a GPU or goes to one continues with new streams, functions of the seed and the step.
            seed = np.random.SeedSequence([gan.seed, gan.step, STREAMS.index(name)])
            setattr(gan.rng, name, gan.backend_used.generator(seed))


def _label_shares(shares):
    """{label: share}; JSON has made texts of all labels, also of whole numbers."""
    shares = shares or {}
    whole = {whole_or_text(label): share for label, share in shares.items()}
    return (whole if all(isinstance(label, int) for label in whole) else shares) or None


def _refuse(name, value, dtype, shape):
    raise MiniganError(
        f"the checkpoint's '{name}' is {value.dtype}{value.shape} and the networks need {dtype}{shape}; "
        "it belongs to another run"
    )


def _generator_state(rng):
    """The state of a NumPy generator (SFC64) for JSON, or None for CuPy's."""
    if not isinstance(rng, np.random.Generator):
        return None
    state = rng.bit_generator.state
    state["state"]["state"] = [int(word) for word in state["state"]["state"]]
    return state


def _read(path):
    """(arrays, meta) of a checkpoint file; raises an error of whatever kind if anything is wrong."""
    arrays = files.read_archive(path, most=math.inf)
    checksum = arrays.pop("checksum").tobytes()
    if checksum != _checksum(arrays):
        raise ValueError("its checksum does not match its content")
    meta = json.loads(arrays.pop("meta").tobytes())
    if meta["format"] != FORMAT:
        raise ValueError(f"its format is {meta['format']} and this version reads {FORMAT}")
    return arrays, meta


def _checksum(arrays):
    """sha256 over names, types, shapes and bytes of all arrays."""
    import hashlib  # it loads OpenSSL: not when minigan is imported

    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.digest()
