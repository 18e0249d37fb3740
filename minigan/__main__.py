"""What to do with a finished run, and the gradient check:

python -m minigan sample RUN -n 64 --seed 1 -o out.png     also out.npy, out.npz or out.csv
python -m minigan evaluate RUN
python -m minigan gradcheck
python -m minigan claims                                   run every claim of the literature in examples/
"""

import argparse
import contextlib
import csv
import os
import sys
import time
from pathlib import Path

import numpy as np

from minigan import __version__, checkpoint, metrics, plots, runs
from minigan.classifier import Classifier
from minigan.data import whole_or_text
from minigan.errors import MiniganError


def main(argv=None):
    """Run the command line; returns the exit code: 0, 1 if a gradient or a claim is wrong, 2 after a mistake."""
    args = parser().parse_args(argv)
    try:
        return args.command(args)
    except MiniganError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"the package {error.name} is not installed; pip install -r requirements.txt"
    except MemoryError as error:
        message = f"there is not enough memory ({error}); ask for less at once"
    except KeyboardInterrupt:
        print("minigan: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as in 'python -m minigan gradcheck | head'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        message = f"{error.filename or 'the output'} cannot be used ({error.strerror or error}); mend that first"
    print("minigan:", message.replace("\n", " "), file=sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")


def parser():
    """The command line."""
    p = Parser(prog="minigan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--version", action="version", version=f"minigan {__version__}")
    commands = p.add_subparsers(required=True, metavar="COMMAND")

    c = commands.add_parser("sample", help="draw samples from a trained generator")
    c.add_argument("run", metavar="RUN", help="the folder of a run")
    c.add_argument("-n", type=int, default=64, metavar="N", help="how many (default: 64)")
    c.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default: 0)")
    c.add_argument("-o", "--out", default="samples.png", metavar="FILE",
                   help="a .png picture, or the numbers, (n, features) in the data's units, as .npy, .csv or .npz, the "
                   "last two with the labels of a --conditional run (default: samples.png)")  # fmt: skip
    c.add_argument("--last", action="store_true", help="use the last weights and not their average")
    c.add_argument(
        "--truncation", type=float, metavar="T", help="z times this: below 1 more typical, less varied samples"
    )
    c.add_argument("--label", metavar="C", help="of this class only, if the run is --conditional")
    c.add_argument(
        "--data", metavar="PATH", help="where the data are, if they have moved (a picture of a table needs them)"
    )
    c.set_defaults(command=sample)

    c = commands.add_parser("evaluate", help="measure a trained generator against its data (mnist: a minute)")
    c.add_argument("run", metavar="RUN", help="the folder of a run")
    c.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples that are scored (default: 0)")
    c.add_argument("--data", metavar="PATH", help="where the data are, if they have moved since")
    c.add_argument("--data-dir", metavar="FOLDER", help="where the files of mnist and fashion-mnist are")
    c.add_argument("--last", action="store_true", help="use the last weights and not their average")
    c.add_argument("--truncation", type=float, metavar="T", help="as for sample")
    c.set_defaults(command=evaluate)

    c = commands.add_parser("gradcheck", help="check every hand-written gradient")
    c.add_argument("--networks", type=int, default=50, metavar="N", help="random GANs to check (default: 50)")
    c.add_argument("--seed", type=int, default=0, metavar="N", help="of the networks and their data (default: 0)")
    c.add_argument("--backend", default="numpy", metavar="NAME", help="numpy (default), cupy or auto")
    c.set_defaults(command=gradcheck)

    c = commands.add_parser("claims", help="run every claim of examples/, print the table, draw the pictures")
    c.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    c.add_argument("--seeds", type=int, default=1, metavar="N", help="how many seeds (default: 1)")
    c.add_argument(
        "--out", default="runs/claims", metavar="FOLDER", help="for pictures and page (default: runs/claims)"
    )
    c.add_argument("--only", metavar="NUMBERS", help="these scripts only, such as 03,07")
    c.set_defaults(command=claims)
    return p


def sample(args):
    """Write n samples of a run to a file, in the format that its name asks for."""
    out = Path(args.out)
    if out.suffix.lower() not in WRITERS:
        raise MiniganError(f"'{args.out}' does not end in {', '.join(WRITERS)}; give a file name that does")
    if out.name in runs.FILES and out.with_name("config.json").exists():
        raise MiniganError(f"'{args.out}' is a file of that run; give another name with -o")
    within(1, 10**9, "-n", args.n)
    within(0, None, "--seed", args.seed)
    gan, _, note = checkpoint.load(args.run, backend="numpy")  # the same samples wherever it was trained
    say_damage(note)
    data = [args.data] if args.data else []
    if (Path(args.run) / "config.json").exists():
        data.append(checkpoint.read_config(args.run)["data"])
    if any(runs.is_of_the_data(out, path) for path in data):
        raise MiniganError(f"'{args.out}' belongs to the data that the run was trained on; give another name with -o")
    if args.label is not None and not gan.conditional:
        raise MiniganError(f"the run in {args.run} knows no labels; leave --label out, or train one with --conditional")
    labels = None
    if gan.conditional and args.label is not None:
        texts = isinstance(next(iter(gan.data.label_shares)), str)
        labels = np.full(args.n, args.label if texts else whole_or_text(args.label))
    elif gan.conditional:
        labels = gan.draw_labels(args.n, np.random.default_rng([args.seed, 1]))  # 1: a stream of its own, not z's
        if out.suffix.lower() == ".png":
            shape = gan.data.image_shape
            shown = plots.images_shown(shape, args.n) if shape else args.n
            labels[:shown] = gan.labels_to_look_at(shown)
    x = gan.sample(args.n, args.seed, not args.last, labels, args.truncation)
    temporary = out.with_name(out.name + ".part")
    try:
        WRITERS[out.suffix.lower()](temporary, x, labels, gan, args)
        os.replace(temporary, out)
    except OSError as error:
        raise MiniganError(
            f"{out} cannot be written ({error.strerror or error}); choose another place with -o"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    shape, many = gan.data.image_shape, f"{args.n} samples"
    if shape and out.suffix.lower() == ".png" and plots.images_shown(shape, args.n) < args.n:
        many = f"the first {plots.images_shown(shape, args.n)} of {args.n} samples"
    print(f"{many} of {args.run} (step {gan.step}) are in {out}")
    if labels is not None and args.label is None and out.suffix.lower() == ".npy":
        print("minigan: a .npy file has no place for their labels; write .npz or .csv to keep them", file=sys.stderr)
    return 0


def write_npy(path, x, labels, gan, args):
    """The numbers as NumPy saves them."""
    with open(path, "wb") as file:
        np.save(file, x)


def write_npz(path, x, labels, gan, args):
    """The numbers as X, images in their shape, and the labels if there are any."""
    X = x.reshape(len(x), *(gan.data.image_shape or x.shape[1:]))
    with open(path, "wb") as file:
        np.savez(file, X=X, **({} if labels is None else {"labels": labels}))


def write_csv(path, x, labels, gan, args):
    """The numbers as text, exact in float32, below the names of the data's columns; the labels in a last column."""
    header = gan.data.columns or [f"x{i}" for i in range(x.shape[1])]
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        if labels is None:
            rows.writerow(header)
            np.savetxt(file, x, fmt="%.9g", delimiter=",")
        else:
            name = checkpoint.read_config(args.run)["label_column"]  # its number, if it was given so
            name = "label" if name is None or name.isdigit() else name
            while name in header:
                name += "_"
            rows.writerow([*header, name])
            rows.writerows([*(f"{v:.9g}" for v in row), label] for row, label in zip(x, labels.tolist(), strict=True))


def write_png(path, x, labels, gan, args):
    """A picture of the samples. Beside tables and points it shows the real data, so it has to load them."""
    data = gan.data
    if not data.image_shape:
        data = data_of(args.run, data=args.data)
        checkpoint.load(args.run, data, backend="numpy")  # refuses other data
    plots.samples(path, data, x, runs.judge(gan, data), labels=labels)


WRITERS = {".png": write_png, ".npy": write_npy, ".npz": write_npz, ".csv": write_csv}


def data_of(run, data_dir=None, data=None):
    """The data that a run was trained on; ``data_dir`` and ``data``: where they are now, if that has changed."""
    now = {name: v for name, v in (("data_dir", data_dir), ("data", data)) if v is not None}
    config = checkpoint.read_config(run) | now
    runs.check_data_dir(data_dir, config["data"])
    return runs.data_again(config)


def evaluate(args):
    """Print the measures that fit the run's data."""
    within(0, None, "--seed", args.seed)
    data = data_of(args.run, args.data_dir, args.data)
    gan, _, note = checkpoint.load(args.run, data, backend="numpy")
    say_damage(note)
    n = metrics.how_many(data)
    labels = gan.draw_labels(n, np.random.default_rng([args.seed, 1])) if gan.conditional else None
    fake = gan.sample(n, args.seed, not args.last, labels, args.truncation)
    try:
        scores = metrics.evaluate(data, fake, reference=True)
    except ValueError as error:
        raise MiniganError(f"the run in {args.run} cannot be evaluated: {error}") from error
    print(f"{args.run}, step {gan.step} of {gan.steps}", flush=True)
    classifier = None
    if data.labels_test is not None:
        classifier = trained_classifier(data)
        scores |= metrics.evaluate_images(data, fake, classifier)
    if gan.conditional:
        scores["label_agreement"] = metrics.label_agreement(data, fake, labels, classifier)
        if classifier is None and data.labels is not None:
            scores["real_label_agreement"] = metrics.real_label_agreement(data)
    print(*metrics.summary_lines(scores, metrics.PUBLISHED.get(data.name)), sep="\n")
    return 0


def trained_classifier(data):
    """A classifier of the data's images, trained here; a line tells how good it is."""
    start = time.perf_counter()
    classifier = Classifier().fit(data.X, data.labels)
    seconds = time.perf_counter() - start
    right = classifier.accuracy(data.X_test, data.labels_test)
    print(f"judged by a classifier trained for it in {seconds:.0f} s: {right:.1%} of held-out images right", flush=True)
    return classifier


def gradcheck(args):
    """Print the table of gradients."""
    from minigan.backend import Backend
    from minigan.gradcheck import print_table, run

    within(1, None, "--networks", args.networks)
    within(0, None, "--seed", args.seed)
    backend = Backend(args.backend)
    print(f"on {backend.device}, {backend.xp.__name__} {backend.xp.__version__}, float64")
    return 0 if print_table(run(args.networks, args.seed, backend)) else 1


def claims(args):
    """Run the scripts of examples/; 1 if a claim does not hold."""
    from minigan.claims import run_all

    within(0, None, "--seed", args.seed)
    within(1, None, "--seeds", args.seeds)
    return 0 if run_all(args.seed, args.seeds, args.out, args.only) else 1


def within(least, most, name, value):
    """Raise MiniganError if a number is too small or too large."""
    if value < least or (most and value > most):
        raise MiniganError(f"{name} is {value}; it must be {least} {f'to {most}' if most else 'or more'}")


def say_damage(note):
    """Tell the user that the last checkpoint was damaged and the one before it is used."""
    if note:
        print(f"minigan: {note}; using the checkpoint before it", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
