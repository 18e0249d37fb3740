"""A run's folder: how it begins, how it goes on after a stop, and every file in it.

config.json            every option, with which the run could be made again
metrics.csv            a row of numbers for each report
checkpoint.npz         everything that training depends on; previous-checkpoint.npz is the one before it
samples.png, samples/  pictures from the same z each time, the last one and all of them
curves.png, training.gif, scores.json    at the end; without scores.json a run is not finished
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import time
from pathlib import Path

import numpy as np

from minigan import GAN, MiniganError, __version__, checkpoint, load, metrics, parallel
from minigan.backend import Backend

# What is not an option of the GAN itself, with its default.
RUN_OPTIONS = {"data": "digits", "data_dir": None, "image_size": None, "save_every": None, "gif": False}
GAN_OPTIONS = {field.name: field.default for field in dataclasses.fields(GAN)}
OPTIONS = {**RUN_OPTIONS, **GAN_OPTIONS}
# What a resumed run may change, because the run stays the same one.
RESUMABLE = ("steps", "save_every", "gif", "data_dir", "backend")


def flag(name):
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def check_run_options(options):
    """Return the options if those that GAN does not judge make sense, and no number is beyond what arrays can hold."""
    for name, fits, wanted in (
        ("data", lambda v: isinstance(v, str), "the name or the path of data"),
        ("data_dir", lambda v: v is None or isinstance(v, str), "the path of a folder"),
        ("image_size", lambda v: v is None or (type(v) is int and v >= 1), "a whole number, 1 or more"),
        ("save_every", lambda v: v is None or (type(v) is int and v >= 1), "a whole number, 1 or more"),
        ("gif", lambda v: isinstance(v, bool), "true or false"),
    ):
        if not fits(options[name]):
            raise MiniganError(f"{name.replace('_', '-')} is {options[name]!r}; it must be {wanted}")
    for name, v in options.items():
        most = {int: 2**63 - 1, float: 1e38}.get(type(v))
        if most and v > most:
            raise MiniganError(f"{name.replace('_', '-')} is {v}, which is too large; it must be {most} or less")
    return options


class Run:
    """A run's folder and what goes into it."""

    def __init__(self, folder, recipe, options, gan, data):
        self.folder, self.recipe, self.options, self.gan, self.data = folder, recipe, options, gan, data
        self.start = time.perf_counter()
        self.saved = None  # the step of the last checkpoint
        self.note = ""  # what a person should know about the way it was resumed
        self.gif = options["gif"]
        self.save_every = options["save_every"] or max(1, gan.steps // 10)
        self.frame_every = max(1, gan.steps // 60)
        self.frames, self.frame_steps, self.frame_surfaces = [], [], []

    @classmethod
    def started(cls, recipe, options, out=None):
        """A new run in folder ``out``: nothing is written before the options and the data have been found good."""
        gan = GAN(parallel.connect(Backend("numpy")), **{name: options[name] for name in GAN_OPTIONS})
        data = load(options["data"], options["data_dir"], options["image_size"])
        try:
            gan.build(data)
        except MiniganError:
            raise
        except (MemoryError, ValueError, OverflowError) as error:
            sizes = ("generator", "discriminator", "latent_dim", "batch_size", "report_every")
            raise MiniganError(
                f"arrays of these sizes cannot be made ({error}): "
                f"{', '.join(f'{flag(name)} {options[name]}' for name in sizes)}; choose smaller ones"
            ) from error
        files = {"config.json": config_text(recipe, options), "metrics.csv": ""}
        writes = gan.ranks.rank == 0
        folder = new_folder(out, Path(recipe or data.name).stem, files) if writes else Path(out or "runs")
        return cls(folder, recipe, options, gan, data)

    @classmethod
    def resumed(cls, folder, given):
        """The run in a folder, from its checkpoint on. ``given``: the options wished for, of which those that would
        make it another run are refused."""
        folder = Path(folder)
        config = checkpoint.read_config(folder)
        known = {name: v for name, v in config.items() if name in OPTIONS}
        changed = [name for name, v in given.items() if name not in RESUMABLE and v != known.get(name)]
        if changed:
            raise MiniganError(
                f"a resumed run cannot change {', '.join(map(flag, changed))}; leave it out, or start a new run "
                "without --resume"
            )
        options = check_run_options({**RUN_OPTIONS, **known, **given})
        data = load(options["data"], options["data_dir"], options["image_size"])
        wanted = {name: options[name] for name in RESUMABLE if name in GAN_OPTIONS and name in options}
        gan, extra, note = checkpoint.load(folder, data, ranks=parallel.connect(Backend("numpy")), **wanted)
        for name, v in gan.options().items():
            if options.get(name, v) != v:
                raise MiniganError(
                    f"{folder / 'config.json'} has {name} {options[name]!r} and the checkpoint {v!r}; restore the file"
                )
        options = {name: {**options, **gan.options()}[name] for name in OPTIONS}
        if gan.step > gan.steps or (gan.step == gan.steps and (folder / "scores.json").exists()):
            raise MiniganError(f"the run in {folder} has done {gan.step} of {gan.steps} steps; give more --steps")
        run = cls(folder, config.get("recipe"), options, gan, data)
        run.saved, run.note = gan.step, note and f"{note}; going on from the checkpoint before it"
        if "frames" in extra:
            run.frames, run.frame_steps = list(extra["frames"]), extra["frame_steps"].tolist()
            run.frame_surfaces = list(extra["frame_surfaces"])
        run.rewind()
        return run

    def rewind(self):
        """Bring the other files of a resumed run back to the step of its checkpoint."""
        if self.gan.ranks.rank > 0:
            return
        write(self.folder / "config.json", config_text(self.recipe, self.options))
        (self.folder / "scores.json").unlink(missing_ok=True)  # written last: without it the run is not finished
        log = self.folder / "metrics.csv"
        rows = [row.split(",") for row in log.read_text("utf-8", "replace").splitlines()] if log.exists() else []
        whole = [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isdigit()]
        kept = rows[:1] + [row for row in whole if int(row[0]) <= self.gan.step]
        write(log, "".join(",".join(row) + "\n" for row in kept))

    def how_to_go_on(self):
        """What to do after a stop."""
        if self.saved is None:
            return "start again: nothing has been saved yet"
        return f"go on with: python train.py --resume {shlex.quote(str(self.folder))}"

    def describe(self, say):
        """Print the resolved configuration."""
        gan, data = self.gan, self.data
        rows = f"{len(data.X):,} rows" if data.X is not None else "drawn afresh each batch"
        say(f"minigan {__version__} on {gan.backend_used.device}, {gan.xp.__name__} {gan.xp.__version__}")
        sizes = f"G has {gan.G.theta.size:,} weights, D {gan.D.theta.size:,}"
        say(f"data {data.name}: {rows}, {data.features} features; {sizes}")
        say("\n".join(f"  --{name.replace('_', '-'):14} {v}" for name, v in self.options.items() if v is not None))
        say(f"files go to {self.folder}" + (f", from step {gan.step}" if gan.step else ""))

    def log(self, numbers):
        """Append a row to metrics.csv. A file that does not begin with these columns is damaged, and begins anew."""
        if self.gan.ranks.rank > 0:
            return
        header = ",".join(numbers) + "\n"
        with open(self.folder / "metrics.csv", "a+", encoding="utf-8") as file:
            file.seek(0)
            if file.readline() != header:
                file.truncate(0)
                file.write(header)
            file.write(",".join(f"{v:.7g}" if isinstance(v, float) else str(v) for v in numbers.values()) + "\n")

    def save(self):
        """The checkpoint and samples.png."""
        if self.gan.ranks.rank > 0:
            self.saved = self.gan.step
            return
        extra = {}
        if self.frames:
            extra = {
                "frames": self.frames,
                "frame_steps": self.frame_steps,
                "frame_surfaces": self.frame_surfaces,
            }
        checkpoint.save(self.folder, self.gan, extra)
        self.saved = self.gan.step
        self.draw_samples()

    def draw_samples(self):
        """samples.png, from the same z each time; every picture is kept in samples/."""
        from minigan import plots

        fake = self.fixed_samples()
        path = self.folder / "samples.png"
        plots.samples(path, self.data, fake, self.gan.probability, title=f"{self.data.name}, step {self.gan.step:,}")
        (self.folder / "samples").mkdir(exist_ok=True)
        write(self.folder / "samples" / f"{self.gan.step:08d}.png", path.read_bytes())

    def fixed_samples(self):
        """Samples from the same z whenever it is called."""
        return self.gan.sample(100 if self.data.image_shape else 2000, seed=self.gan.seed)

    def keep_frame(self):
        """One more frame for the animation."""
        if self.gan.ranks.rank > 0:
            return
        from minigan import plots

        self.frames.append(self.fixed_samples()[: 49 if self.data.image_shape else 1000])
        self.frame_steps.append(self.gan.step)
        if self.data.features <= 2:
            self.frame_surfaces.append(self.gan.probability(plots.surface_grid(self.data)))

    def draw_animation(self):
        """training.gif"""
        from minigan import plots

        plots.animate(
            self.folder / "training.gif",
            self.data,
            self.frames,
            self.frame_steps,
            self.frame_surfaces or None,
        )

    def draw_curves(self):
        """curves.png, from metrics.csv."""
        from minigan import plots

        table = np.genfromtxt(self.folder / "metrics.csv", delimiter=",", names=True)
        plots.curves(self.folder / "curves.png", {name: np.atleast_1d(table[name]) for name in table.dtype.names})

    def score(self):
        """Write scores.json, the last file of a run; returns lines for a person."""
        fake = self.gan.sample(metrics.how_many(self.data), seed=self.gan.seed)
        try:
            scores = metrics.evaluate(self.data, fake)
            lines = metrics.summary_lines(scores)
        except ValueError as error:  # too few rows
            scores, lines = {}, [f"not scored: {error}"]
        write(self.folder / "scores.json", json.dumps(scores, indent=1) + "\n")
        return lines


def config_text(recipe, options):
    """What config.json holds: every option, with which the run could be made again."""
    return json.dumps({"minigan": __version__, "recipe": recipe, **options}, indent=1) + "\n"


def new_folder(wish, name, files):
    """Make the run's folder and its first files, {name: text}; or, if that fails, leave nothing behind.

    The folder is the one asked for, which must not hold a run yet, or runs/<name>, numbered if taken.
    """
    if wish == "":
        raise MiniganError("--out '' names no folder; give one, or leave --out away")
    folder, missing = Path(wish or "runs"), []
    try:
        if wish and any((folder / file).exists() for file in ("config.json", checkpoint.NAME)):
            raise MiniganError(f"{folder} holds a run already; choose another --out, or go on with --resume {folder}")
        for number in itertools.count(1):
            if not wish:
                folder = Path("runs", f"{name}-{number}" if number > 1 else name)
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            try:
                folder.mkdir(parents=True, exist_ok=bool(wish))
                break
            except FileExistsError:
                if wish or not os.path.lexists(folder):
                    raise
        for file, text in files.items():
            write(folder / file, text)
    except OSError as error:
        for file in files:
            with contextlib.suppress(OSError):
                (folder / file).unlink()
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise MiniganError(
            f"the folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from error
    return folder


def write(path, content):
    """Write a file of text or bytes in one move, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
