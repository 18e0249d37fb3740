"""Train a GAN: one run, from options to pictures.

python train.py                              handwritten digits, in a minute
python train.py --recipe ring                eight Gaussians on a ring
python train.py --data my.csv --steps 5000   your own data
python train.py --resume runs/digits         go on where a run has stopped
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np

from minigan import GAN, MiniganError, __version__, checkpoint, load, metrics, parallel, recipes
from minigan.backend import Backend

# What is not an option of the GAN itself, with its default.
RUN_OPTIONS = {"data": "digits", "data_dir": None, "image_size": None, "save_every": None, "gif": False}
GAN_OPTIONS = {field.name: field.default for field in dataclasses.fields(GAN)}
OPTIONS = {**RUN_OPTIONS, **GAN_OPTIONS}
# What a resumed run may change, because the run stays the same one.
RESUMABLE = ("steps", "save_every", "gif", "data_dir", "backend")


def main(argv=None):
    """Run the command line; returns the exit code: 0, 2 after a mistake, 130 or 143 if stopped by a signal."""
    args = parser().parse_args(argv)
    try:
        return train(args)
    except MiniganError as error:
        message = str(error)
    except MemoryError as error:
        message = f"there is not enough memory ({error}); choose smaller data, networks or batches"
    except KeyboardInterrupt:  # before the first step or after the last; between them StopSignal takes it
        print("train.py: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as in 'train.py | head'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        message = f"{error.filename or 'a file'} cannot be used ({error.strerror or error}); mend that first"
    print("train.py:", message.replace("\n", " "), file=sys.stderr)
    return 2


# -- Options -------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")


def parser():
    """The command line. Every option is None unless given, so that a recipe can be told from a wish."""
    p = Parser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every option overrides the recipe's. 'python -m minigan --help' tells what to do with a finished run.",
    )  # fmt: skip
    g = p.add_argument_group("what to train on")
    g.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"a set of options: {', '.join(recipes.names())}, or your own .toml "
        "file (default: the recipe named like --data, else digits)",
    )
    g.add_argument(
        "--data",
        metavar="DATA",
        help="a built-in set (digits, mnist, fashion-mnist, gaussian, gaussians, ring, "
        "grid, swiss-roll, moons), or the path of a .npy, .npz or .csv file or a folder of PNG or JPEG images",
    )
    g.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="where the files of mnist and fashion-mnist are (default: they are downloaded once, into a cache)",
    )
    g.add_argument("--image-size", type=int, metavar="N", help="crop and resize a folder's images to N x N pixels")

    g = p.add_argument_group("networks")
    g.add_argument(
        "--generator",
        metavar="LAYERS",
        help="hidden layers, such as '256, relu, 256, relu'; also leaky_relu 0.2, "
        "tanh, sigmoid, dropout KEEP, maxout UNITSxPIECES",
    )
    g.add_argument("--discriminator", metavar="LAYERS", help="the same for the discriminator")
    g.add_argument("--latent-dim", type=int, metavar="N", help="size of the noise z")
    g.add_argument("--prior", metavar="NAME", help="distribution of z: normal, uniform or spherical")
    g.add_argument(
        "--init-G",
        metavar="HOW",
        type=number_or_name,
        help="first weights: he, glorot, or a number a for uniform in (-a, a)",
    )
    g.add_argument("--init-D", metavar="HOW", type=number_or_name, help="the same for the discriminator")
    g.add_argument("--output-bias", metavar="HOW", help="zero, or data: the generator starts at the mean of the data")

    g = p.add_argument_group("training")
    g.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="iterations of Algorithm 1 (k discriminator steps, one of the generator)",
    )
    g.add_argument("--batch-size", type=int, metavar="M", help="real samples, and as many generated ones, in a step")
    g.add_argument("--k", type=int, metavar="K", help="discriminator steps for each generator step")
    g.add_argument("--loss", metavar="NAME", help="the generator's: non-saturating or minimax")
    g.add_argument("--update", metavar="NAME", help="alternating, or simultaneous (as in the 2014 paper's code)")
    g.add_argument("--optimizer", metavar="NAME", help="sgd or adam")
    g.add_argument("--lr", type=float, metavar="RATE", help="learning rate")
    g.add_argument("--lr-D", type=float, metavar="RATE", help="the discriminator's, if it is to differ")
    g.add_argument("--lr-end", type=float, metavar="FRACTION", help="last learning rate, as a fraction of the first")
    g.add_argument("--momentum", type=float, metavar="M", help="momentum of sgd; beta_1 of adam")
    g.add_argument("--momentum-end", type=float, metavar="M", help="its last value, if it is to change")
    g.add_argument("--r1", type=float, metavar="GAMMA", help="weight of the gradient penalty on real samples; 0: none")
    g.add_argument("--r1-end", type=float, metavar="GAMMA", help="its last value, if it is to change")
    g.add_argument("--r2", type=float, metavar="GAMMA", help="the same on generated samples")
    g.add_argument(
        "--average",
        type=float,
        metavar="DECAY",
        help="of the averaged generator weights that samples come from; 0: none",
    )
    g.add_argument("--seed", type=int, metavar="N", help="everything random follows from it")

    g = p.add_argument_group("machine and files")
    g.add_argument("--backend", metavar="NAME", help="auto, numpy or cupy (GPU)")
    g.add_argument("--dtype", metavar="NAME", help="float32 or float64")
    g.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the run's files go (default: runs/<recipe or data>, numbered if taken)",
    )
    g.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, from its last checkpoint")
    g.add_argument(
        "--save-every",
        type=int,
        metavar="N",
        help="steps between checkpoints and sample pictures (default: a tenth of --steps)",
    )
    g.add_argument("--report-every", type=int, metavar="N", help="steps between rows of metrics.csv")
    g.add_argument("--gif", action="store_true", default=None, help="also draw training as an animation, training.gif")
    g.add_argument("--quiet", action="store_true", help="print nothing but errors")
    g.add_argument("--version", action="version", version=f"minigan {__version__}")
    return p  # fmt: skip


def number_or_name(text):
    """A float if it is one, else the text."""
    try:
        return float(text)
    except ValueError:
        return text


def flag(name):
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def given_options(args):
    """The options that the command line sets."""
    return {name: v for name, v in vars(args).items() if v is not None and name in OPTIONS}


def resolve(args):
    """(recipe name or None, every option with its value): defaults, then the recipe, then the command line."""
    recipe = args.recipe
    if recipe is None:
        recipe = args.data if args.data in recipes.names() else "digits" if args.data is None else None
    chosen = {} if recipe is None else recipes.load(recipe)
    for name in chosen:
        if name not in OPTIONS:
            raise MiniganError(f"recipe '{recipe}' sets '{name}', which is no option; remove that line")
    return recipe, check_run_options({**OPTIONS, **chosen, **given_options(args)})


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


# -- One run -------------------------------------------------------------------------------------------


def train(args):
    """Everything between the options and the exit code."""
    say = (lambda *lines: None) if args.quiet else (lambda *lines: print(*lines, sep="\n", flush=True))
    run = Run.started(args) if args.resume is None else Run.resumed(args)
    if run.gan.ranks.rank > 0:
        say, args.quiet = (lambda *lines: None), True
    choose_threads(run.gan)
    run.describe(say)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # if training diverges, GAN.report says so
            return carry_out(run, say, args.quiet)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MiniganError(
            f"{error.filename2 or error.filename or run.folder} cannot be written at step {run.gan.step} "
            f"({error.strerror or error}); mend that, then {run.how_to_go_on()}"
        ) from error


def carry_out(run, say, quiet):
    """The training loop, the log and the pictures."""
    from tqdm import tqdm

    gan, stop = run.gan, StopSignal()
    first, began = gan.step, time.perf_counter()
    bar = tqdm(
        total=gan.steps,
        initial=gan.step,
        disable=quiet,
        unit="step",
        mininterval=0.2 if sys.stderr.isatty() else 15,
    )
    with bar, stop:
        while gan.step < gan.steps and not stop.signal:
            gan.train_step()
            bar.update()
            stop.signal = gan.ranks.any(stop.signal)
            last = gan.step == gan.steps
            if gan.step % gan.report_every == 0 or last:
                numbers = gan.report()
                run.log(numbers)
                bar.set_postfix_str(
                    "V {V:.3f}  D(x) {D_real:.2f}  D(G(z)) {D_fake:.2f}".format(**numbers), refresh=False
                )
            if run.gif and (gan.step % run.frame_every == 0 or last):
                run.keep_frame()
            if gan.step % run.save_every == 0 or last:
                gan.report()  # raises Diverged before a good checkpoint is replaced
                run.save()
    seconds = time.perf_counter() - began
    if gan.step < gan.steps:
        if gan.step != run.saved:
            if gan.step:
                gan.report()
            run.save()
        say(f"\nStopped at step {gan.step} of {gan.steps}; {run.how_to_go_on()}")
        return 128 + stop.signal

    if first == gan.steps:  # resumed after the last step, because the pictures are missing
        run.draw_samples()
    if gan.ranks.rank > 0:
        return 0
    run.draw_curves()
    if run.gif:
        run.draw_animation()
    scores = run.score()
    steps = gan.step - first
    say(
        "", f"{steps} steps in {seconds:.1f} s ({steps / max(seconds, 1e-9):,.0f} steps a second), "
        f"{time.perf_counter() - run.start:.1f} s in all", *scores, f"files in {run.folder}:",
        "  " + "  ".join(sorted(file.name for file in run.folder.iterdir())),
    )  # fmt: skip
    return 0


def choose_threads(gan, small=1e7):
    """One thread for NumPy's matrix products if they are small: a second one gains little then, and loses much as
    soon as the machine has other work. Otherwise all cores, shared among the processes. Environment variables win."""
    if not {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & set(os.environ):
        largest = 2 * gan.m * max(p[0].size for net in (gan.G, gan.D) for p in net.params.layers if p)
        cores = max(1, (os.cpu_count() or 1) // gan.ranks.size)
        gan.backend_used.set_threads(1 if largest < small else cores)


class Run:
    """A run's folder and what goes into it."""

    def __init__(self, folder, recipe, options, gan, data):
        self.folder, self.recipe, self.options, self.gan, self.data = folder, recipe, options, gan, data
        self.start = time.perf_counter()
        self.saved = None  # the step of the last checkpoint
        self.gif = options["gif"]
        self.save_every = options["save_every"] or max(1, gan.steps // 10)
        self.frame_every = max(1, gan.steps // 60)
        self.frames, self.frame_steps, self.frame_surfaces = [], [], []

    @classmethod
    def started(cls, args):
        """A new run: nothing is written before the options and the data have been found good."""
        recipe, options = resolve(args)
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
        folder = new_folder(args.out, Path(recipe or data.name).stem, files) if writes else Path(args.out or "runs")
        return cls(folder, recipe, options, gan, data)

    @classmethod
    def resumed(cls, args):
        """A run that goes on from its checkpoint; options that would make it another run are refused."""
        folder, given = Path(args.resume), given_options(args)
        config = checkpoint.read_config(folder)
        known = {name: v for name, v in config.items() if name in OPTIONS}
        changed = [name for name, v in given.items() if name not in RESUMABLE and v != known.get(name)]
        changed += [name for name in ("recipe", "out") if getattr(args, name) is not None]
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
        if note:
            print(f"train.py: {note}; going on from the checkpoint before it", file=sys.stderr)
        if gan.step > gan.steps or (gan.step == gan.steps and (folder / "scores.json").exists()):
            raise MiniganError(f"the run in {folder} has done {gan.step} of {gan.steps} steps; give more --steps")
        run = cls(folder, config.get("recipe"), options, gan, data)
        run.saved = gan.step
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


class StopSignal:
    """SIGINT and SIGTERM end the loop after the step at hand; a second SIGINT ends the program at once."""

    def __init__(self):
        self.signal, self.before = 0, {}

    def __enter__(self):
        for s in (signal.SIGINT, signal.SIGTERM):
            self.before[s] = signal.signal(s, self._take)
        return self

    def _take(self, number, frame):
        self.signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __exit__(self, *exception):
        for s, handler in self.before.items():
            signal.signal(s, handler)


if __name__ == "__main__":
    sys.exit(parallel.guarded(main))
