"""Train a GAN: one run, from options to pictures.

python train.py                              handwritten digits, in a minute
python train.py --recipe ring                eight Gaussians on a ring
python train.py --data my.csv --steps 5000   your own data
python train.py --resume runs/digits         go on where a run has stopped
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

from minigan import GAN, MiniganError, __version__, checkpoint, load, metrics, recipes

# What is not an option of the GAN itself, with its default.
RUN_OPTIONS = {"data": "digits", "data_dir": None, "image_size": None, "save_every": None, "gif": False}
GAN_OPTIONS = {field.name: field.default for field in dataclasses.fields(GAN)}
# What a resumed run may change, because the run stays the same one.
RESUMABLE = ("steps", "save_every", "gif", "data_dir", "backend")


def main(argv=None):
    """Run the command line; returns the exit code: 0, 2 after a mistake, 130 or 143 if stopped by a signal."""
    args = parser().parse_args(argv)
    try:
        return train(args)
    except MiniganError as error:
        print(f"train.py: {error}", file=sys.stderr)
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
    g.add_argument("--init-G", metavar="HOW", help="first weights: he, glorot, or a number a for uniform in (-a, a)")
    g.add_argument("--init-D", metavar="HOW", help="the same for the discriminator")
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


def resolve(args):
    """(recipe name or None, every option with its value): defaults, then the recipe, then the command line."""
    given = {name: v for name, v in vars(args).items() if v is not None and name in GAN_OPTIONS | RUN_OPTIONS}
    recipe = args.recipe or (args.data if args.data in recipes.names() else None if args.data else "digits")
    chosen = recipes.load(recipe) if recipe else {}
    for name in chosen:
        if name not in GAN_OPTIONS | RUN_OPTIONS:
            raise MiniganError(f"recipe '{recipe}' sets '{name}', which is no option; remove that line")
    options = {**RUN_OPTIONS, **GAN_OPTIONS, **chosen, **given}
    for name in ("init_G", "init_D"):
        try:
            options[name] = float(options[name])
        except ValueError:
            pass  # a name; GAN judges it
    return recipe, options


# -- One run -------------------------------------------------------------------------------------------


def train(args):
    """Everything between the options and the exit code."""
    start = time.perf_counter()
    say = (lambda *lines: None) if args.quiet else (lambda *lines: print(*lines, sep="\n", flush=True))
    run = Run.resumed(args) if args.resume else Run.started(args)
    gan, data = run.gan, run.data
    run.describe(say)

    from tqdm import tqdm

    stop = StopSignal()
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=gan.steps,
        initial=gan.step,
        disable=args.quiet,
        unit="step",
        mininterval=0.2 if terminal else 15,
    )
    first, began = gan.step, time.perf_counter()
    with bar, stop:
        while gan.step < gan.steps and not stop.signal:
            gan.train_step()
            bar.update()
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
                run.save()
    seconds = time.perf_counter() - began
    if stop.signal:
        run.save()
        say(f"\nStopped at step {gan.step} of {gan.steps}. Go on with: python train.py --resume {run.folder}")
        return 128 + stop.signal

    run.draw_curves()
    if run.gif:
        run.draw_animation()
    scores = metrics.evaluate(data, gan.sample(metrics.how_many(data), seed=gan.seed))
    write(run.folder / "scores.json", json.dumps(scores, indent=1))
    say(
        "", f"{gan.steps} steps in {seconds:.1f} s ({(gan.steps - first) / max(seconds, 1e-9):,.0f} steps a second), "
        f"{time.perf_counter() - start:.1f} s in all", *metrics.summary_lines(scores), f"files in {run.folder}:",
        "  " + "  ".join(sorted(file.name for file in run.folder.iterdir())),
    )  # fmt: skip
    return 0


class Run:
    """A run's folder and what goes into it."""

    def __init__(self, folder, recipe, options, gan, data):
        self.folder, self.recipe, self.options, self.gan, self.data = folder, recipe, options, gan, data
        self.gif = options["gif"]
        self.save_every = options["save_every"] or max(1, gan.steps // 10)
        self.frame_every = max(1, gan.steps // 60)
        self.frames, self.frame_steps, self.frame_surfaces = [], [], []

    @classmethod
    def started(cls, args):
        """A new run: nothing is written before the options and the data have been found good."""
        recipe, options = resolve(args)
        check_run_options(options)
        gan = GAN(**{name: options[name] for name in GAN_OPTIONS})
        data = load(options["data"], options["data_dir"], options["image_size"])
        gan.build(data)
        folder = new_folder(args.out, Path(recipe or data.name).stem)
        run = cls(folder, recipe, options, gan, data)
        write(
            folder / "config.json",
            json.dumps({"minigan": __version__, "recipe": recipe, **options}, indent=1) + "\n",
        )
        write(folder / "metrics.csv", "")
        return run

    @classmethod
    def resumed(cls, args):
        """A run that goes on from its checkpoint; options that would make it another run are refused."""
        folder = Path(args.resume)
        config = checkpoint.read_config(folder)
        given = {name: v for name, v in vars(args).items() if v is not None and name in {**GAN_OPTIONS, **RUN_OPTIONS}}
        changed = [name for name, v in given.items() if v != config.get(name) and name not in RESUMABLE]
        if changed or args.recipe or args.out:
            names = ", ".join("--" + n.replace("_", "-") for n in changed) or "--recipe and --out"
            raise MiniganError(
                f"a resumed run cannot change {names}; leave it out, or start a new run without --resume"
            )
        options = {
            **RUN_OPTIONS,
            **{name: v for name, v in config.items() if name in {**GAN_OPTIONS, **RUN_OPTIONS}},
            **given,
        }
        check_run_options(options)
        data = load(options["data"], options["data_dir"], options["image_size"])
        gan, extra, note = checkpoint.load(folder, data, steps=options["steps"], backend=options["backend"])
        if note:
            print(f"train.py: {note}; going on from the checkpoint before it", file=sys.stderr)
        if gan.step >= gan.steps:
            raise MiniganError(f"the run in {folder} is finished ({gan.step} steps); give more --steps to go on")
        run = cls(folder, config["recipe"], options, gan, data)
        if "frames" in extra:
            run.frames, run.frame_steps = list(extra["frames"]), extra["frame_steps"].tolist()
            run.frame_surfaces = list(extra["frame_surfaces"])
        write(
            folder / "config.json",
            json.dumps({"minigan": __version__, "recipe": run.recipe, **options}, indent=1) + "\n",
        )
        rows = (folder / "metrics.csv").read_text().splitlines() if (folder / "metrics.csv").exists() else []
        kept = rows[:1] + [
            row for row in rows[1:] if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= gan.step
        ]
        write(folder / "metrics.csv", "".join(row + "\n" for row in kept))
        return run

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
        """Append a row to metrics.csv, with a header before the first."""
        path = self.folder / "metrics.csv"
        with open(path, "a") as file:
            if not path.stat().st_size:
                file.write(",".join(numbers) + "\n")
            file.write(",".join(f"{v:.7g}" for v in numbers.values()) + "\n")

    def save(self):
        """The checkpoint and samples.png, from the same z each time; every picture is kept in samples/."""
        from minigan import plots

        extra = {}
        if self.frames:
            extra = {
                "frames": self.frames,
                "frame_steps": self.frame_steps,
                "frame_surfaces": self.frame_surfaces,
            }
        checkpoint.save(self.folder, self.gan, extra)
        fake = self.fixed_samples()
        path = self.folder / "samples.png"
        plots.samples(path, self.data, fake, self.gan.probability, title=f"{self.data.name}, step {self.gan.step:,}")
        (self.folder / "samples").mkdir(exist_ok=True)
        (self.folder / "samples" / f"{self.gan.step:08d}.png").write_bytes(path.read_bytes())

    def fixed_samples(self):
        """Samples from the same z whenever it is called."""
        return self.gan.sample(100 if self.data.image_shape else 2000, seed=self.gan.seed)

    def keep_frame(self):
        """One more frame for the animation."""
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
        import numpy as np

        from minigan import plots

        table = np.genfromtxt(self.folder / "metrics.csv", delimiter=",", names=True)
        plots.curves(self.folder / "curves.png", {name: np.atleast_1d(table[name]) for name in table.dtype.names})


def check_run_options(options):
    for name in ("save_every", "image_size"):
        if options[name] is not None and options[name] < 1:
            raise MiniganError(f"{name.replace('_', '-')} is {options[name]}; it must be 1 or more")


def new_folder(wish, name):
    """Make the run's folder: the one asked for, which must not hold a run yet, or runs/<name>, numbered if taken."""
    if wish:
        folder = Path(wish)
        if (folder / "config.json").exists():
            raise MiniganError(
                f"{folder} holds a run already; choose another --out, or continue it with --resume {folder}"
            )
    else:
        folder, number = Path("runs", name), 2
        while (folder / "config.json").exists():
            folder, number = Path("runs", f"{name}-{number}"), number + 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "config.json.try", "")
        (folder / "config.json.try").unlink()
    except OSError as error:
        raise MiniganError(
            f"the folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from error
    return folder


def write(path, text):
    """Write a text file in one move, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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
    sys.exit(main())
