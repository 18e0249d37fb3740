"""A run's folder: how it begins, how it goes on after a stop, and every file in it.

config.json            every option, with which the run could be made again
metrics.csv            a row of numbers for each report
checkpoint.npz         everything that training depends on; previous-checkpoint.npz is the one before it
samples.png, samples/  pictures from the same z each time, the last one and all of them
curves.png, training.gif, scores.json    at the end; without scores.json a run is not finished
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from minigan import GAN, MiniganError, __version__, checkpoint, files, load, metrics, parallel, plots
from minigan.data import IN_FOLDERS, NAMES
from minigan.files import write
from minigan.options import Options

# What is not an option of the GAN itself, with its default.
RUN_OPTIONS = {
    "data": "digits", "data_dir": None, "image_size": None, "label_column": None, "save_every": None, "gif": False,
}  # fmt: skip
GAN_OPTIONS = {field.name: field.default for field in dataclasses.fields(GAN)}
OPTIONS = {**RUN_OPTIONS, **GAN_OPTIONS}
FILES = (checkpoint.NAME, checkpoint.PREVIOUS, "metrics.csv", "samples.png", "curves.png")  # that sample could name
# What a resumed run may change, because the run stays the same one; data by another path if they are the same.
RESUMABLE = ("steps", "save_every", "gif", "data", "data_dir", "backend")


def data_of(options):
    """The Dataset that the options of a run name."""
    return load(options["data"], options["data_dir"], options["image_size"], options["label_column"])


def data_again(options):
    """The Dataset that a run was started with."""
    if options["data"] not in NAMES and not os.path.lexists(os.path.expanduser(options["data"])):
        raise MiniganError(
            f"the data '{options['data']}' are not there, seen from {Path.cwd()}; go to the folder where the run was "
            "started, put them back, or say where they are now with --data PATH"
        )
    return data_of(options)


def is_of_the_data(path, data):
    """Whether a file would replace the user's own data, ``data`` being their path, or be a picture among them."""
    if data in NAMES:
        return False
    path, data = Path(path), Path(os.path.expanduser(data))
    path, target = path.parent.resolve() / path.name, path.resolve()  # two if it is a link
    if data.exists():
        places = [data.resolve(), data.parent.resolve() / data.name]
    else:  # the run was started in another folder, so the name has to do
        places = [place for place in (path, *path.parents) if place.name == data.name and place.exists()]
    runs = [folder for folder in path.parents if files.holds_a_run(folder)]
    for place in places:
        of_a_run = any(place in run.parents for run in runs)  # read_images leaves those pictures out
        among = place.is_dir() and place in path.parents and path.suffix.lower() in files.IMAGE_SUFFIXES
        if place in (path, target) or (among and not of_a_run):
            return True
    return False


def check_data_dir(data_dir, data):
    """Raise MiniganError if a person names a folder for data that are not looked for in one."""
    if data_dir is not None and data not in IN_FOLDERS:
        raise MiniganError(f"--data-dir {data_dir} is for {', '.join(IN_FOLDERS)}, not for '{data}'; leave it out")


def flag(name):
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def check_run_options(options):
    """Return the options if those that GAN does not judge make sense, and no number is beyond what arrays can hold."""
    for name, fits, wanted in (
        ("data", lambda v: isinstance(v, str), "the name or the path of data"),
        ("data_dir", lambda v: v is None or isinstance(v, str), "the path of a folder"),
        ("image_size", lambda v: v is None or (type(v) is int and v >= 1), "a whole number, 1 or more"),
        ("label_column", lambda v: v is None or isinstance(v, str), "the name of a column, or its number as a text"),
        ("save_every", fits_save_every, "a whole number of steps, 1 or more, or seconds such as '60s'"),
        ("gif", lambda v: isinstance(v, bool), "true or false"),
    ):
        if not fits(options[name]):
            raise MiniganError(f"{name.replace('_', '-')} is {options[name]!r}; it must be {wanted}")
    for name, v in options.items():
        most = {int: 2**63 - 1, float: 1e38}.get(type(v))
        if most and v >= most:
            raise MiniganError(f"{name.replace('_', '-')} is {v}, which is too large; it must be below {most}")
    return options


def fits_save_every(v):
    """Whether v is None, a number of steps, or seconds as a text such as "60s" or "0.5s"."""
    if isinstance(v, str):
        return re.fullmatch(r"\d{1,9}(\.\d{1,9})?s", v, re.ASCII) is not None and float(v[:-1]) > 0
    return v is None or (type(v) is int and v >= 1)


class Run:
    """A run's folder and what goes into it. No other process can use the folder until ``close``."""

    def __init__(self, folder, recipe, options, gan, data, unlock):
        self.folder, self.recipe, self.options, self.gan, self.data = folder, recipe, options, gan, data
        self.start = time.perf_counter()
        self.saved = None  # the step of the last checkpoint
        self.saved_at = time.monotonic()  # a clock that nobody sets
        self.signs = []  # of mode collapse, when last looked for
        self.notes = []  # what a person should know about the way it was resumed
        self.keep_previous = True  # at the next save
        self.close = unlock
        self.gif = options["gif"]
        self.save_every = options["save_every"] or max(1, gan.steps // 10)
        self.frame_every = max(1, gan.steps // 60)
        self.shown = 100 if data.image_shape else 2000  # samples in samples.png
        if data.image_shape and gan.conditional:  # of each class some, also where large images leave room for few
            self.shown = plots.images_shown(data.image_shape, 10**9)
        self.frames, self.frame_steps, self.frame_surfaces = [], [], []

    @classmethod
    def started(cls, recipe, options, out=None, say=lambda line: None):
        """A new run in folder ``out``: nothing is written before the options and the data have been found good.

        say(line) is called before what takes a while, if a person may be waiting.
        """
        gan = GAN(ranks=parallel.connect(), **{name: options[name] for name in GAN_OPTIONS})
        data = data_of(options)
        if gan.cluster_parts and gan.ranks.rank == 0 and sys.stdout.isatty():  # a log has no need of it
            say(f"looking for {gan.clusters} clusters in {data.name}, by way of {gan.cluster_parts} parts")
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
        folder, unlock = Path(out or "runs"), lambda: None
        if gan.ranks.rank == 0:
            first = {"config.json": config_text(recipe, options), "metrics.csv": ""}
            folder, unlock = new_folder(out, Path(recipe or data.name).stem, first)
        return cls(folder, recipe, options, gan, data, unlock)

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
        check_data_dir(given.get("data_dir"), options["data"])
        ranks = parallel.connect()
        unlock = files.lock(folder) if ranks.rank == 0 else lambda: None
        try:
            return cls._resumed(folder, config["recipe"], options, given, ranks, unlock)
        except BaseException:
            unlock()
            raise

    @classmethod
    def _resumed(cls, folder, recipe, options, given, ranks, unlock):
        data = data_again(options)
        changed = {name: v for name, v in given.items() if name in RESUMABLE and name in GAN_OPTIONS}
        gan, extra, damage = checkpoint.load(folder, data, ranks=ranks, **changed)
        notes = [f"{damage}; going on from the checkpoint before it"] if damage else []
        if (gan.saved_on, gan.backend_used.name) != ("numpy", "numpy"):  # CuPy's generators cannot be saved
            notes.append(
                f"saved on {gan.saved_on}, going on with {gan.backend_used.name}: from here on not bit for bit"
            )
        for name, v in gan.options().items():
            if options.get(name, v) == v:
                continue
            difference = f"{folder / 'config.json'} has {name} {options[name]!r} and the checkpoint {v!r}"
            if name not in RESUMABLE:
                raise MiniganError(f"{difference}; restore the file")
            Options(**{**gan.options(), name: options[name]}).check()
            notes.append(f"{difference}; going on with the latter")
        options = {name: {**options, **gan.options()}[name] for name in OPTIONS}
        if gan.step > gan.steps or (gan.step == gan.steps and (folder / "scores.json").exists()):
            raise MiniganError(f"the run in {folder} has done {gan.step} of {gan.steps} steps; give more --steps")
        run = cls(folder, recipe, options, gan, data, unlock)
        run.saved, run.notes, run.keep_previous = gan.step, notes, not damage
        if {"frames", "frame_steps", "frame_surfaces"} <= extra.keys():
            run.frames, run.frame_steps = list(extra["frames"]), extra["frame_steps"].tolist()
            run.frame_surfaces = list(extra["frame_surfaces"])
        if ranks.rank == 0:
            if changed:  # the checkpoint knows the options that count
                run.save_checkpoint()
            run.rewind()
        return run

    def rewind(self):
        """Bring the other files of a resumed run back to the step of its checkpoint."""
        step, samples = self.gan.step, self.folder / "samples"
        if samples.is_symlink():
            raise MiniganError(f"{samples} is a link that leads out of the run's folder; remove it")
        write(self.folder / "config.json", config_text(self.recipe, self.options))
        (self.folder / "scores.json").unlink(missing_ok=True)  # written last: without it the run is not finished
        write(self.folder / "metrics.csv", "".join(rows_until(step, self.folder / "metrics.csv")))
        for left in (*self.folder.glob(".*.tmp"), *self.folder.glob("*.part"), *samples.glob("*.part")):  # by a crash
            left.unlink()
        later = [picture for picture in samples.glob("*.png") if picture.stem.isdecimal() and int(picture.stem) > step]
        for picture in later:
            picture.unlink()
        if later or not ((self.folder / "samples.png").exists() and self.picture().exists()):
            self.draw_samples()

    def how_to_go_on(self):
        """What to do after a stop."""
        if self.saved is None:
            return "start again: nothing has been saved yet"
        return f"go on with: python train.py --resume {shlex.quote(str(self.folder))}"

    def describe(self, say):
        """Print the resolved configuration."""
        gan, data = self.gan, self.data
        rows = f"{len(data.X):,} rows" if data.X is not None else "drawn afresh each batch"
        if Path(self.options["data"]).suffix.lower() in (".csv", ".tsv") and not data.columns:
            rows += ", no header"
        say(f"minigan {__version__} on {gan.backend_used.device}, {gan.xp.__name__} {gan.xp.__version__}")
        sizes = f"G has {gan.G.theta.size:,} weights, D {gan.D.theta.size:,}"
        shape = f" (images of {' x '.join(map(str, data.image_shape))})" if data.image_shape else ""
        say(f"data {data.name}: {rows}, {data.features} features{shape}; {sizes}")
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

    def due(self):
        """Whether it is time for a checkpoint: every so many steps, or so many seconds after the last one."""
        if isinstance(self.save_every, str):
            return self.gan.ranks.any(time.monotonic() - self.saved_at >= float(self.save_every[:-1]))
        return self.gan.step % self.save_every == 0

    def save(self):
        """The checkpoint and samples.png."""
        if self.gan.ranks.rank == 0:
            self.save_checkpoint()
            self.draw_samples()
        self.saved, self.saved_at = self.gan.step, time.monotonic()

    def save_checkpoint(self):
        """checkpoint.npz. When it is on the disk, so are the rows of metrics.csv up to its step."""
        extra = {}
        if self.frames:
            extra = {
                "frames": self.frames,
                "frame_steps": self.frame_steps,
                "frame_surfaces": self.frame_surfaces,
            }
        with open(self.folder / "metrics.csv", "ab") as log:
            os.fsync(log.fileno())
        checkpoint.save(self.folder, self.gan, extra, self.keep_previous)
        self.keep_previous = True

    def draw_samples(self):
        """samples.png, from the same z each time; every picture is kept in samples/."""
        path, title = self.folder / "samples.png", f"{self.data.name}, step {self.gan.step:,}"
        plots.samples(path, self.data, self.fixed_samples(), judge(self.gan, self.data), title, self.fixed_labels())
        self.picture().parent.mkdir(exist_ok=True)
        write(self.picture(), path.read_bytes())

    def picture(self):
        """Where samples.png of this step is kept."""
        return self.folder / "samples" / f"{self.gan.step:08d}.png"

    def fixed_samples(self):
        """Samples from the same z whenever it is called, of a conditional GAN class by class."""
        return self.gan.sample(self.shown, seed=self.gan.seed, labels=self.fixed_labels())

    def fixed_labels(self):
        """The labels of ``fixed_samples``; None where there is no choice."""
        return self.gan.labels_to_look_at(self.shown) if self.gan.conditional else None

    def keep_frame(self):
        """One more frame for the animation."""
        if self.gan.ranks.rank > 0:
            return
        self.frames.append(self.fixed_samples()[self.in_a_frame()])
        self.frame_steps.append(self.gan.step)
        if self.data.features <= 2:
            self.frame_surfaces.append(judge(self.gan, self.data)(plots.surface_grid(self.data)))

    def in_a_frame(self):
        """Which of ``fixed_samples`` a frame of the animation shows: at most half of them, some of every class."""
        most = 49 if self.data.image_shape else 1000
        return slice(0, 2 * most, 2) if self.gan.conditional else slice(most)

    def signs_of_collapse(self):
        """A sentence after each tenth of the run in which the samples have come to lack variety; else None."""
        gan = self.gan
        tenth = lambda step: step * 10 // gan.steps
        if gan.ranks.rank > 0 or tenth(gan.step) == tenth(gan.step - 1):
            return None
        fake = gan.sample(1000, seed=gan.seed, truncation=1.0)  # a narrower prior is no collapse
        if not np.isfinite(fake).all():  # it has diverged: the next report says so
            return None
        before, self.signs = self.signs, metrics.collapse_signs(self.data, fake)
        if before and not self.signs:
            return f"step {gan.step}: the samples have the variety of the data again"
        if not self.signs or (self.signs == before and gan.step < gan.steps):
            return None
        cure = f"if that lasts, raise --r1 (it is {gan.r1:g}) or lower --lr (it is {gan.lr:g})"
        return f"step {gan.step}: the samples lack variety: {', and '.join(self.signs)}; {cure}"

    def draw_animation(self):
        """training.gif"""
        if not self.frames:  # --gif came when all steps were done
            self.keep_frame()
        plots.animate(
            self.folder / "training.gif",
            self.data,
            self.frames,
            self.frame_steps,
            self.frame_surfaces or None,
            labels=self.fixed_labels()[self.in_a_frame()] if self.gan.conditional else None,
        )

    def draw_curves(self):
        """curves.png, from metrics.csv."""
        log = self.folder / "metrics.csv"
        if len(list(rows_until(self.gan.step, log))) < 2:  # somebody has emptied it
            return
        table = np.genfromtxt(log, delimiter=",", names=True)
        plots.curves(self.folder / "curves.png", {name: np.atleast_1d(table[name]) for name in table.dtype.names})

    def score(self):
        """Write scores.json, the last file of a run; returns lines for a person."""
        gan, n = self.gan, metrics.how_many(self.data)
        labels = gan.draw_labels(n, np.random.default_rng([gan.seed, 1])) if gan.conditional else None
        fake = gan.sample(n, seed=gan.seed, labels=labels)
        try:
            scores = metrics.evaluate(self.data, fake)
            if gan.conditional:
                scores["label_agreement"] = metrics.label_agreement(self.data, fake, labels)
            lines = metrics.summary_lines(scores)
        except ValueError as error:  # too few rows
            scores, lines = {}, [f"not scored: {error}"]
        scores = {name: v if np.isfinite(v) else None for name, v in scores.items()}  # JSON knows no NaN
        write(self.folder / "scores.json", json.dumps(scores, indent=1) + "\n")
        return lines


def judge(gan, data):
    """x -> D(x) for a picture; of a conditional GAN D(x|c) with c the label of the place x, as its mean over all labels
    would show a good GAN's modes as generated: most labels do not belong there."""
    if not gan.conditional:
        return gan.probability
    return lambda x: gan.probability(x, metrics.labels_nearby(data, x))


def config_text(recipe, options):
    """What config.json holds: every option, with which the run could be made again."""
    return json.dumps({"minigan": __version__, "recipe": recipe, **options}, indent=1) + "\n"


def rows_until(step, log):
    """The lines of metrics.csv, beginning with its header, that are whole and not later than a step."""
    columns, last = [], -1
    if not log.exists():
        return
    with files.opened(log) as raw, io.TextIOWrapper(raw, "utf-8", "replace", newline="\n") as lines:
        for line in lines:
            cells = line.rstrip("\n").split(",")
            if not columns:
                if (
                    cells[0] != "step"
                    or len(set(cells)) < len(cells)
                    or not all(re.fullmatch(r"\w+", cell, re.ASCII) for cell in cells)
                ):
                    return
                columns = cells
            elif len(cells) != len(columns) or not line.endswith("\n") or not all(map(is_number, cells)):
                continue
            elif not (re.fullmatch(r"\d{1,19}", cells[0]) and last < int(cells[0]) <= step):
                continue
            else:
                last = int(cells[0])
            yield line


def is_number(text):
    """Whether a text is a number as metrics.csv has them."""
    try:
        return re.fullmatch(r"[-+.e0-9]+|nan|-?inf", text) is not None and float(text) is not None
    except ValueError:
        return False


def _has_only_begun(folder):
    """Whether the config.json is one of minigan's, and metrics.csv without a single report."""
    with contextlib.suppress(MiniganError):
        return "minigan" in checkpoint.read_config(folder) and not (folder / "metrics.csv").stat().st_size
    return False


def new_folder(wish, name, first):
    """(folder, function that unlocks it): make the run's folder and its first files, {name: text}, or leave nothing
    behind if that fails.

    The folder is the one asked for, which must be new, empty, or left by a run that failed before its first report; or
    runs/<name>, numbered if taken.
    """
    if wish == "":
        raise MiniganError("--out '' names no folder; give one, or leave --out away")
    folder, missing, written, unlock = Path(wish or "runs"), [], [], lambda: None
    try:
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
        unlock = files.lock(folder)
        there = {path.name for path in folder.iterdir() if path.name[0] != "."}
        begun = there == set(first) and _has_only_begun(folder)
        if there and not begun:  # whose files they are nobody knows: a run would replace some, and delete others later
            unlock()
            what = f"is not empty ({files.listed(sorted(there))}); choose another --out"
            if there & {checkpoint.NAME, checkpoint.PREVIOUS}:
                what = f"holds a run already; choose another --out, or go on with --resume {folder}"
            elif "config.json" in there:
                what = "holds a run that has saved nothing; choose another --out, or remove it"
            raise MiniganError(f"{folder} {what}")
        for file, text in first.items():
            written.append(folder / file)
            write(folder / file, text)
    except OSError as error:
        for file in written:
            with contextlib.suppress(OSError):
                file.unlink()
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        unlock()
        raise MiniganError(
            f"the folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from error
    return folder, unlock
