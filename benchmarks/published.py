"""Train the recipes whose numbers can be held against published ones, all seeds, and write the table.

    python benchmarks/published.py ring-pacgan grid-pacgan --seeds 10
    python benchmarks/published.py mnist mnist-conditional fashion-mnist --seeds 3 --data-dir FOLDER
    python benchmarks/published.py mnist-paper --seeds 1 --data-dir FOLDER
    python benchmarks/published.py mnist-paper --seeds 5 --backend cupy --data-dir FOLDER

Final weights, no choice of the best moment; --jobs trainings at a time, on one core each, or all on one GPU. Training
states are kept in --out, so that a stopped script goes on where it was. Scores go to benchmarks/results/published.json,
and from all that is there the tables are written to benchmarks/results/published.md. The recipe mnist-paper is trained
once with the average of G's weights kept beside them, which changes nothing in the training: the last weights are the
paper's recipe, their average is the recipe mnist-paper-averaged, and with a truncated z mnist-paper-truncated; all
three are scored along the way.

On a GPU a training is replayed as CUDA graphs (graph.py) and scored on the CPU's other cores meanwhile. One such
training leaves most of a GPU idle: the seeds of a recipe train in one process, in turns, each on its own stream, and
the minutes in the tables are those of all of them together. A stopped one begins anew.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
EPOCH = 500  # steps of mnist-paper
MILESTONES = [EPOCH * e for e in (5, 10, 20, 30, *range(50, 10_000, 50))]
SAVE_EVERY = 2500
WAYS = {  # to sample from a training of mnist-paper; prefix of the scores: averaged weights or last, truncation
    "last_": (False, None),
    "": (True, None),  # the recipe mnist-paper-averaged
    "truncated_": (True, 0.8),  # the recipe mnist-paper-truncated
}
SAMPLES = 10_000  # scored of images; of points 2,500 as PacGAN, and 10,000 besides

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np  # noqa: E402

from minigan import GAN, MiniganError, checkpoint, load, metrics, recipes  # noqa: E402
from minigan.backend import Backend  # noqa: E402
from minigan.classifier import Classifier  # noqa: E402


def train(recipe, seed, folder, data, submit, steps=None, backend="numpy", clock=None):
    """Train one seed of a recipe, or go on with it; yields after each step, and returns its last row of scores.

    submit(gan, last) gives None, or the Future of a dict; what that gives is kept, one line for each step, in
    folder/scores.jsonl. ``clock.seconds`` counts the training alone; a clock may serve several.
    """
    clock = clock or SimpleNamespace(seconds=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "scores.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    options = {name: v for name, v in recipes.load(recipe).items() if name != "data"} | {"seed": seed}
    if recipe == "mnist-paper":
        options["average"] = 0.999
    if steps:
        options["steps"] = steps
    if rows and rows[-1]["step"] >= options["steps"]:
        return rows[-1]  # it is done
    if backend == "cupy":
        rows = []
        log.unlink(missing_ok=True)
    if (folder / checkpoint.NAME).exists() and backend == "numpy":
        gan, extra, _ = checkpoint.load(folder, data, backend=backend, **({"steps": steps} if steps else {}))
        clock.seconds = float(extra.get("seconds", 0))
    else:
        gan = GAN(**options, backend=backend).build(data)
    if gan.step > gan.steps:
        raise MiniganError(f"{folder} has done {gan.step} steps already, more than {gan.steps}; give more --steps")
    done, pending = {row["step"] for row in rows}, []
    last = gan.step == gan.steps

    def write_scores(wait):
        while pending and (wait or pending[0][1].done()):
            row, future = pending.pop(0)
            rows.append(row | future.result())
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")

    try:
        while gan.steps not in done:
            if not last:  # else it was stopped while its last state was scored
                began = time.perf_counter()
                gan.train_step()
                last = gan.step == gan.steps
                if gan.step % gan.report_every == 0 or last:
                    gan.report()  # raises Diverged
                clock.seconds += time.perf_counter() - began
                if last or (gan.step % SAVE_EVERY == 0 and backend == "numpy"):
                    checkpoint.save(folder, gan, {"seconds": clock.seconds})
            if gan.step not in done and (future := submit(gan, last)):
                row = {"recipe": recipe, "seed": seed, "step": gan.step, "seconds": round(clock.seconds, 1)}
                row |= {"device": gan.backend_used.device} if backend == "cupy" else {}
                done.add(gan.step)
                pending.append((row, future))
                print(f"{recipe} seed {seed}: step {gan.step} of {gan.steps}, {clock.seconds:.0f} s", flush=True)
            write_scores(wait=False)
            yield
    finally:
        write_scores(wait=True)
    return rows[-1]


def in_turns(trainings, streams):
    """Run several ``train``, a step of each in turn, each on its own stream; returns their last rows."""
    going, rows = dict(enumerate(zip(trainings, streams, strict=True))), {}
    while going:
        for i, (training, stream) in list(going.items()):
            with stream:
                try:
                    next(training)
                except StopIteration as end:
                    rows[i] = end.value
                    del going[i]
    return [rows[i] for i in sorted(rows)]


class Now:
    """An executor that does at once what it is asked for."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


class Scorer:
    """The measures that fit a data set, for samples."""

    def __init__(self, data):
        self.data, self.classifier = data, None

    def points(self, samples, last):
        """Mode coverage of 2,500 samples, as in PacGAN's table, and of 10,000."""
        few, many = (metrics.mode_coverage(x, self.data.modes, self.data.sigma) for x in samples)
        return few | {f"many_{name}": value for name, value in many.items()}

    def images(self, samples, last):
        """Every measure for images; samples: {prefix: (fake, labels or None)}."""
        data = self.data
        self.classifier = self.classifier or Classifier(seed=0).fit(data.X, data.labels)
        scores = {"classifier": self.classifier.accuracy(data.X_test, data.labels_test)}
        for prefix, (fake, labels) in samples.items():
            found = metrics.evaluate(data, fake, reference=last)
            found |= metrics.evaluate_images(data, fake, self.classifier)
            if labels is not None:
                found["label_agreement"] = metrics.label_agreement(data, fake, labels, self.classifier)
            else:
                labels = self.classifier.predict(fake)
            found["class_recalls"] = metrics.recall_by_class(data, fake, labels).round(4).tolist()
            found["class_recall"] = float(np.mean(found["class_recalls"]))
            scores |= {prefix + name: value for name, value in found.items()}
        return scores


def submit_points(executor, score, gan, last):
    """Scores of the last weights only."""
    if not last:
        return None
    return executor.submit(score, [gan.sample(n, seed=gan.seed) for n in (2500, SAMPLES)], last)


def submit_images(executor, score, gan, last):
    """Of mnist-paper also along the way, of the last weights and of their average."""
    paper = gan.data.name == "mnist-paper"
    if not (last or (paper and gan.step in MILESTONES)):
        return None
    samples = {}
    for prefix, (average, truncation) in (WAYS if paper else {"": (True, None)}).items():
        labels = gan.draw_labels(SAMPLES, np.random.default_rng(gan.seed)) if gan.conditional else None
        samples[prefix] = gan.sample(SAMPLES, gan.seed, average, labels, truncation), labels
    return executor.submit(score, samples, last)


def several(recipe, seeds, out, data_dir, steps, backend="numpy", scorers=0):
    """Train and score some seeds; the rows go to published.json by way of the parent.

    scorers: in how many other processes; 0 scores in this one, between the steps.
    """
    name = recipes.load(recipe)["data"]
    data = load(name, data_dir)
    kind = "points" if data.modes is not None else "images"
    folder = lambda seed: Path(out) / (f"{recipe}-{seed}" + ("-cupy" if backend == "cupy" else ""))
    xp, clock = Backend(backend).xp, SimpleNamespace(seconds=0.0)
    streams = [nullcontext() if xp is np else xp.cuda.Stream(non_blocking=True) for _ in seeds]
    submit = submit_points if kind == "points" else submit_images

    def go(submit):
        return in_turns([train(recipe, s, folder(s), data, submit, steps, backend, clock) for s in seeds], streams)

    if not scorers:
        return go(partial(submit, Now(), getattr(Scorer(data), kind)))
    with ProcessPoolExecutor(scorers, mp_context=multiprocessing.get_context("spawn")) as executor:
        return go(partial(submit, executor, partial(score_elsewhere, name, data_dir, kind)))


def score_elsewhere(name, data_dir, kind, samples, last):
    """A Scorer's method in a process that has its data already, or loads them."""
    if name not in scorer_of:
        scorer_of[name] = Scorer(load(name, data_dir))
    return getattr(scorer_of[name], kind)(samples, last)


scorer_of = {}  # name of the data: Scorer, in a process of ``several``


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipes", nargs="*", help="which to train; none: only write the tables anew")
    p.add_argument("--seeds", type=int, default=3, help="how many, from 0 on (default: 3)")
    p.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    p.add_argument("--steps", type=int, help="of a recipe without an end, such as mnist-paper (default: the recipe's)")
    p.add_argument("--jobs", type=int, help="trainings at a time (default: 2; cupy: 5)")
    p.add_argument("--data-dir", help="where the files of mnist and fashion-mnist are")
    p.add_argument("--out", default="runs/published", help="where training states go (default: runs/published)")
    p.add_argument("--backend", choices=["numpy", "cupy"], default="numpy", help="where to train (default: numpy)")
    p.add_argument("--scorers", type=int, help="processes that score beside the trainings (default: 0; cupy: 14)")
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    try:
        for recipe in args.recipes:
            recipes.load(recipe)
    except MiniganError as error:
        p.error(str(error))
    if args.seeds < 1 or args.first < 0:
        p.error(f"--seeds must be 1 or more and --first 0 or more, not {args.seeds} and {args.first}")
    if args.child:
        seeds = range(args.first, args.first + args.seeds)
        several(args.recipes[0], seeds, args.out, args.data_dir, args.steps, args.backend, args.scorers)
        return
    on_gpu = args.backend == "cupy"
    jobs, scorers = args.jobs or (5 if on_gpu else 2), (14 if on_gpu else 0) if args.scorers is None else args.scorers
    seeds, at_once = range(args.first, args.first + args.seeds), jobs if on_gpu else 1  # of one process
    waiting = [(recipe, seeds[i : i + at_once]) for recipe in args.recipes for i in range(0, len(seeds), at_once)]
    running, failed = [], 0
    while waiting or running:
        while waiting and len(running) < jobs // at_once:
            recipe, some = waiting.pop(0)
            command = [sys.executable, __file__, recipe, "--child", "--out", args.out]
            command += ["--first", str(some[0]), "--seeds", str(len(some))]
            command += ["--data-dir", args.data_dir] if args.data_dir else []
            command += ["--steps", str(args.steps)] if args.steps else []
            command += ["--backend", args.backend, "--scorers", str(scorers)]
            running.append(subprocess.Popen(command))
        time.sleep(0.5)
        codes = [process.poll() for process in running]
        failed += sum(map(bool, codes))
        running = [process for process, code in zip(running, codes, strict=True) if code is None]
    collect(Path(args.out))
    sys.exit(1 if failed else 0)


# -- The tables --------------------------------------------------------------------------------------------


def collect(out):
    """Add what lies in ``out`` to published.json and write published.md from it."""
    file = RESULTS / "published.json"
    key = lambda r: (r["recipe"], r["seed"], r.get("device", ""), r["step"])
    rows = {key(r): r for r in (json.loads(file.read_text()) if file.exists() else [])}
    for log in sorted(out.glob("*/scores.jsonl")):
        for line in log.read_text().splitlines():
            r = json.loads(line)
            rows[key(r)] = {k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()}
    rows = [rows[key] for key in sorted(rows)]
    file.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    (RESULTS / "published.md").write_text(tables(rows))
    print((RESULTS / "published.md").read_text())


POINTS = {  # column: score, or a function of the row
    "modes": lambda r, prefix: f"{r['modes']} of {r['total']}",
    "with half a share": "strict_modes",
    "within 3σ": "high_quality",
    "reverse KL": "reverse_kl",
    "width / σ": "sigma_ratio",
    "within 3σ, N = 10,000": "many_high_quality",
    "reverse KL, N = 10,000": "many_reverse_kl",
    "width / σ, N = 10,000": "many_sigma_ratio",
}
IMAGES = {
    "Parzen": "parzen",
    "its error": "parzen_error",
    "accepted": "accepted",
    "label TV": "label_tv",
    "Fréchet": "frechet",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "classes": "classes_present",
    "to training / held-out": "training_distance_ratio",
    "recall within classes": "class_recall",
    "label as asked for": lambda r, prefix: f"{r['label_agreement']:.4f}" if "label_agreement" in r else "",
}


def table(rows, columns, first, prefix=""):
    """A Markdown table: a line for each row, led by ``first`` (name, function); then mean and spread over seeds."""
    name, key = first
    lines = [[name, *columns, "minutes"], ["---"] * (len(columns) + 2)]
    lines += [[key(r), *(show(r, c, prefix) for c in columns.values()), f"{r['seconds'] / 60:.1f}"] for r in rows]
    if len(rows) > 1 and name == "seed":
        lines.append(["mean ± sd", *(spread(rows, c, prefix) for c in columns.values()), ""])
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def show(r, column, prefix=""):
    """A score of a row as text; ``column``: its name, or a function of the row."""
    value = column(r, prefix) if callable(column) else r[prefix + column]
    return f"{value:.4f}" if isinstance(value, float) else value


def least_share(rows, of):
    """The least recall within a class as a share of that of the same class in other rows, both means over the seeds."""
    mine, theirs = (np.mean([r["class_recalls"] for r in some], axis=0) for some in (rows, of))
    return float((mine / theirs).min())


def spread(rows, column, prefix=""):
    """Mean and standard deviation over the rows; of one row its value."""
    if callable(column):
        return ""
    values = [r[prefix + column] for r in rows]
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def tables(rows):
    """published.md"""
    parts = ["# The published numbers\n\nWritten by `python benchmarks/published.py`; final weights, every seed."]
    place = lambda r: f", {r['device']}" if "device" in r else ""  # of trainings on the CPU it is not said
    for recipe, where in dict.fromkeys((r["recipe"], place(r)) for r in rows):
        mine = [r for r in rows if (r["recipe"], place(r)) == (recipe, where)]
        final = list({r["seed"]: r for r in mine}.values())  # the last step of each
        real, seed, epoch = final[-1], ("seed", lambda r: r["seed"]), ("epoch", lambda r: r["step"] // EPOCH)
        if "modes" in real:
            parts += [f"\n## {recipe}{where}\n", table(final, POINTS, seed)]
            continue
        if recipe == "mnist-paper":
            ended = [r for r in final if r["step"] == max(r["step"] for r in final)]
            ways = {"mnist-paper": "last_", "mnist-paper-averaged": "", "mnist-paper-truncated": "truncated_"}
            for name, prefix in ways.items() if len(ended) > 1 else ():
                parts.append(f"\n## {name}{where}, after {ended[0]['step'] // EPOCH} epochs\n")
                parts.append(table(ended, IMAGES, seed, prefix))
            for last in final:
                parts.append(f"\n## mnist-paper, seed {last['seed']}{where}, along the way")
                for name, prefix in ways.items():
                    one = [r for r in mine if r["seed"] == last["seed"] and prefix + "parzen" in r]
                    if one:
                        parts += [f"\n{name}:\n", table(one, IMAGES, epoch, prefix)]
        else:
            parts += [f"\n## {recipe}{where}\n", table(final, IMAGES, seed)]
            kin = [r for r in rows if r["recipe"] == recipe.replace("-cond", "-uncond") != recipe and place(r) == where]
            plain = list({r["seed"]: r for r in kin}.values())
            if plain:
                parts.append(
                    f"\nThe mean recall within classes is {spread(final, 'class_recall')}, without labels "
                    f"{spread(plain, 'class_recall')}; of the ten classes the least favoured has "
                    f"{least_share(final, plain):.0%} of what it has without labels."
                )
        if "real_precision" in real:
            names = {"parzen": "Parzen", "accepted": "accepted", "label_tv": "label TV", "frechet": "Fréchet"}
            names |= {name: name for name in ("precision", "recall", "density", "coverage")}
            scores = ", ".join(f"{name} {real['real_' + key]:.4g}" for key, name in names.items())
            parts.append(
                f"\nReal images: {scores}. The classifier is right on {real['classifier']:.4f} of the test set."
            )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
