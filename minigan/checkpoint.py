"""Save a GAN in the middle of training, load it, and go on as if nothing had happened, bit for bit.

A checkpoint is an ``.npz`` file without pickle: every array of the training state, and one JSON text (``meta``) with
the rest. A sha256 of all of it lies inside, so that damage is noticed. Files are written under a temporary name,
flushed to the disk and renamed; the checkpoint before the last is kept as ``previous-checkpoint.npz``.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from minigan import __version__
from minigan.data import Dataset
from minigan.errors import MiniganError
from minigan.gan import GAN

NAME, PREVIOUS = "checkpoint.npz", "previous-checkpoint.npz"
FORMAT = 1


def save(folder, gan, extra=None):
    """Write folder/checkpoint.npz. ``extra``: a dict of further arrays to keep, returned by ``load``."""
    arrays, meta = _state(gan)
    arrays.update({f"extra/{name}": array for name, array in (extra or {}).items()})
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    arrays["checksum"] = np.frombuffer(_checksum(arrays), np.uint8)
    path = Path(folder, NAME)
    temporary = path.with_suffix(".npz.part")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder, data=None, **changed):
    """(gan, extra, note) from folder/checkpoint.npz, or from the one before if that is damaged; ``note`` then says so.

    data: the Dataset to go on training with; its content must be what the run was started with. Without it the
    GAN can sample and judge, but not train. ``changed``: options of the GAN that are to differ
    (steps, backend), and ``ranks``. Raises MiniganError if there is no readable checkpoint, or other data.
    """
    reasons = []
    for path in (Path(folder, NAME), Path(folder, PREVIOUS)):
        try:
            arrays, meta = _read(path)
            break
        except FileNotFoundError:
            reasons.append(f"{path} does not exist")
        except Exception as error:  # a damaged file can fail anywhere in the parsers of NumPy and zipfile
            reasons.append(f"{path} is damaged ({error})")
    else:
        raise MiniganError(
            f"no checkpoint can be read: {'; '.join(reasons)}; give the folder of a finished or stopped run"
        )
    if data is not None and data.fingerprint() != meta["data"]["fingerprint"]:
        raise MiniganError(
            f"the data '{data.name}' is not what the run in {folder} was trained on; restore it, or start a new run"
        )
    gan = GAN(**{**meta["options"], **changed})
    _restore(gan, arrays, meta, data)
    extra = {name.removeprefix("extra/"): array for name, array in arrays.items() if name.startswith("extra/")}
    return gan, extra, "; ".join(reasons)


def read_config(folder):
    """The options of the run in ``folder``, a dict. Raises MiniganError if there is no readable config.json."""
    path = Path(folder, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
        for name, kinds in (("data", str), ("data_dir", str | None), ("image_size", int | None)):
            if not isinstance(config.setdefault(name, None), kinds):
                raise ValueError(f"'{name}' is {config[name]!r}")
        return config
    except FileNotFoundError:
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
            "columns": gan.data.columns, "fingerprint": gan.data.fingerprint(),
        },
    }  # fmt: skip
    return arrays, meta


def _restore(gan, arrays, meta, data):
    about = meta["data"]
    trained_on = data or Dataset(
        name=about["name"], features=about["features"], columns=about["columns"],
        image_shape=about["image_shape"] and tuple(about["image_shape"]),
        shift=arrays["shift"], scale=arrays["scale"],
    )  # fmt: skip
    gan.build(trained_on, start=False)
    gan.step = meta["step"]
    for name, out in _live_arrays(gan).items():
        _copy(arrays, name, out, gan.backend_used)
    gan.optimizer_G.powers, gan.optimizer_D.powers = meta["powers"]
    gan.batches.restore(arrays["order"], meta["position"])
    for name, rng in vars(gan.rng).items():
        state = meta["random"][name]
        if isinstance(rng, np.random.Generator) and state is not None:
            state["state"]["state"] = np.array(state["state"]["state"], np.uint64)
            rng.bit_generator.state = state
        else:
            # CuPy gives no access to the state of its generators, and the CPU's is of no use to the GPU: a run that
            # comes from a GPU or goes to one continues with a new stream, a function of the seed and the step.
            setattr(gan.rng, name, gan.backend_used.generator(np.random.SeedSequence([gan.seed, gan.step])))


def _copy(arrays, name, out, backend):
    """Fill ``out`` with the array of that name, if it has its shape and dtype."""
    value = arrays[name]
    if value.shape != out.shape or value.dtype != out.dtype:
        raise MiniganError(
            f"the checkpoint's '{name}' is {value.dtype}{value.shape} and the networks need {out.dtype}{out.shape}; "
            "it belongs to another run"
        )
    out[...] = backend.to_device(value)


def _generator_state(rng):
    """The state of a NumPy generator (SFC64) for JSON, or None for CuPy's."""
    if not isinstance(rng, np.random.Generator):
        return None
    state = rng.bit_generator.state
    state["state"]["state"] = [int(word) for word in state["state"]["state"]]
    return state


def _read(path):
    """(arrays, meta) of a checkpoint file; raises an error of whatever kind if anything is wrong."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    checksum = arrays.pop("checksum").tobytes()
    if checksum != _checksum(arrays):
        raise ValueError("its checksum does not match its content")
    meta = json.loads(arrays.pop("meta").tobytes())
    if meta["format"] != FORMAT:
        raise ValueError(f"its format is {meta['format']} and this version reads {FORMAT}")
    return arrays, meta


def _checksum(arrays):
    """sha256 over names, types, shapes and bytes of all arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.digest()
