"""Train a GAN: one run, from options to pictures.

python train.py                              handwritten digits, in a minute
python train.py --recipe ring                eight Gaussians on a ring
python train.py --data my.csv --steps 5000   your own data
python train.py --resume runs/digits         go on where a run has stopped
"""

import argparse
import importlib.util
import os
import signal
import sys
import time

import numpy as np

from minigan import MiniganError, __version__, data, parallel, recipes
from minigan.runs import OPTIONS, Run, check_data_dir, check_run_options

HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no such signal


def main(argv=None):
    """Run the command line; returns the exit code: 0, 2 after a mistake, 129, 130 or 143 if stopped by a signal."""
    args = parser().parse_args(argv)
    try:
        return train(args)
    except MiniganError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"the package {error.name} is not installed; pip install -r requirements.txt"
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
    # One write: the sentences of several processes would run into each other.
    sys.stderr.write("train.py: " + message.replace("\n", " ") + "\n")
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
        "file (default: digits; with --data, the recipe of that name if there is one)",
    )
    g.add_argument(
        "--data",
        metavar="DATA",
        help=f"a built-in set ({', '.join(data.NAMES)}), "
        "or the path of a .npy, .npz, .csv or .tsv file or a folder of PNG or JPEG images",
    )
    g.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="where the files of mnist and fashion-mnist are (default: they are downloaded once, into a cache)",
    )
    g.add_argument("--image-size", type=int, metavar="N", help="crop and resize a folder's images to N x N pixels")
    g.add_argument(
        "--label-column",
        metavar="NAME",
        help="the column of a .csv or .tsv file that holds the label: its name, or its number, from 1",
    )

    g = p.add_argument_group("networks")
    g.add_argument(
        "--generator",
        metavar="LAYERS",
        help="hidden layers, such as '256, relu, 256, relu'; also leaky_relu 0.2, "
        "tanh, sigmoid, dropout KEEP, maxout UNITSxPIECES, fourier OCTAVES",
    )
    g.add_argument("--discriminator", metavar="LAYERS", help="the same for the discriminator")
    g.add_argument("--latent-dim", type=int, metavar="N", help="size of the noise z")
    g.add_argument("--prior", metavar="NAME", help="distribution of z: normal, uniform, spherical or signs")
    g.add_argument(
        "--conditional", action="store_true", default=None, help="learn p(x|label): labels go into both networks"
    )
    g.add_argument(
        "--clusters",
        type=int,
        metavar="N",
        help="learn p(x|cluster), of so many clusters that k-means finds in the data, without labels",
    )
    g.add_argument(
        "--cluster-parts",
        type=int,
        metavar="N",
        help="put the clusters together from so many small parts, such as 1000, by what lies between them",
    )
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
    g.add_argument("--lr-decay", type=float, metavar="A", help="the rate is also divided by this at every step")
    g.add_argument("--momentum", type=float, metavar="M", help="momentum of sgd; beta_1 of adam")
    g.add_argument("--momentum-end", type=float, metavar="M", help="its last value, if it is to change")
    g.add_argument("--momentum-steps", type=int, metavar="N", help="in how many steps it gets there (default: all)")
    g.add_argument("--r1", type=float, metavar="GAMMA", help="weight of the gradient penalty on real samples; 0: none")
    g.add_argument("--r1-end", type=float, metavar="GAMMA", help="its last value, if it is to change")
    g.add_argument("--r2", type=float, metavar="GAMMA", help="the same on generated samples")
    g.add_argument(
        "--average",
        type=float,
        metavar="DECAY",
        help="of the averaged generator weights that samples come from; 0: none",
    )
    g.add_argument(
        "--truncation",
        type=float,
        metavar="T",
        help="samples come from z times this: below 1 more typical and less varied",
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
        type=whole_or_text,
        metavar="N",
        help="steps between checkpoints and sample pictures, or seconds such as 60s (default: a tenth of --steps)",
    )
    g.add_argument("--report-every", type=int, metavar="N", help="steps between rows of metrics.csv")
    g.add_argument("--gif", action="store_true", default=None, help="also draw training as an animation, training.gif")
    g.add_argument("--quiet", action="store_true", help="print nothing but errors")
    g.add_argument("--version", action="version", version=f"minigan {__version__}")
    return p


def number_or_name(text):
    """A float if it is one, else the text."""
    try:
        return float(text)
    except ValueError:
        return text


def whole_or_text(text):
    """A whole number if it is one, else the text."""
    try:
        return int(text)
    except ValueError:
        return text


def given_options(args, names=OPTIONS):
    """The options that the command line sets."""
    return {name: v for name, v in vars(args).items() if v is not None and name in names}


def resolve(args):
    """(recipe name or None, every option with its value): defaults, then the recipe, then the command line."""
    recipe = args.recipe
    if recipe is None:
        recipe = args.data if args.data in recipes.names() else "digits" if args.data is None else None
    chosen = {} if recipe is None else recipes.load(recipe)
    for name in chosen:
        if name not in OPTIONS:
            meant = name.replace("-", "_")
            remedy = f"write {meant}" if meant in OPTIONS else "remove that line"
            raise MiniganError(f"recipe '{recipe}' sets '{name}', which is no option; {remedy}")
    options = check_run_options({**OPTIONS, **chosen, **given_options(args)})
    check_data_dir(args.data_dir, options["data"])
    return recipe, options


# -- One run -------------------------------------------------------------------------------------------


def train(args):
    """Everything between the options and the exit code."""
    for package in ("matplotlib", "tqdm"):  # imported late, and missed before anything is written
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    say = (lambda *lines: None) if args.quiet else (lambda *lines: print(*lines, sep="\n", flush=True))
    if args.resume is None:
        run = Run.started(*resolve(args), args.out, say)
    elif not args.resume:
        raise MiniganError("--resume '' holds no run; give the folder of a run")
    else:
        run = resumed(args)
    if run.gan.ranks.rank > 0:
        say, args.quiet = (lambda *lines: None), True
    try:
        for note in run.notes:
            print("train.py:", note, file=sys.stderr)
        choose_threads(run.gan)
        run.describe(say)
        with np.errstate(over="ignore", invalid="ignore"):  # if training diverges, GAN.report says so
            return carry_out(run, say, args.quiet)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MiniganError(
            f"{error.filename2 or error.filename or run.folder} cannot be written at step {run.gan.step} "
            f"({error.strerror or error}); mend that, then {run.how_to_go_on()}"
        ) from error
    finally:
        run.close()


def resumed(args):
    """The run to go on with."""
    try:
        return Run.resumed(args.resume, given_options(args, (*OPTIONS, "recipe", "out")))
    except OSError as error:
        error.filename = error.filename or args.resume  # of a full disk it is not known
        raise


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
        stopped = 0
        while gan.step < gan.steps and not stopped:
            gan.train_step()
            bar.update()
            stopped = gan.ranks.any(stop.signal)
            last = gan.step == gan.steps
            if gan.step % gan.report_every == 0 or last:
                numbers = gan.report()
                run.log(numbers)
                bar.set_postfix_str(
                    "V {V:.3f}  D(x) {D_real:.2f}  D(G(z)) {D_fake:.2f}".format(**numbers), refresh=False
                )
            if not quiet and (sentence := run.signs_of_collapse()):
                bar.write(sentence, file=sys.stderr)
            if run.gif and (gan.step % run.frame_every == 0 or last):
                run.keep_frame()
            if run.due() or last:
                gan.report()  # raises Diverged before a good checkpoint is replaced
                run.save()
        if gan.step < gan.steps and gan.step != run.saved:  # here, for a terminal that closes may say so twice
            if gan.step:
                gan.report()
            run.save()
    seconds = time.perf_counter() - began
    if gan.step < gan.steps:
        try:
            say(f"\nStopped at step {gan.step} of {gan.steps}; {run.how_to_go_on()}")
        except OSError:
            if stopped != HANGUP:  # else the terminal is gone, and all is saved
                raise
        return parallel.Agreed(128 + stopped)

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
    soon as the machine has other work. Otherwise all cores, shared among the processes."""
    largest = 2 * gan.batch_size * max(p[0].size for net in (gan.G, gan.D) for p in net.params.layers if p)
    gan.backend_used.set_threads(1 if largest / gan.ranks.size < small else gan.ranks.cores)


class StopSignal:
    """SIGINT, SIGTERM and SIGHUP (the terminal is closed) end the loop after the step at hand; a second SIGINT ends the
    program at once. Under nohup SIGHUP stays ignored."""

    def __init__(self):
        self.signal, self.before = 0, {}

    def __enter__(self):
        ignored = HANGUP is None or signal.getsignal(HANGUP) == signal.SIG_IGN
        for s in (signal.SIGINT, signal.SIGTERM, *([] if ignored else [HANGUP])):
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
