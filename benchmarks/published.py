"""Train the recipes whose numbers can be held against published ones, all seeds, and write the table.

    python benchmarks/published.py ring-pacgan grid-pacgan --seeds 10
    python benchmarks/published.py mnist mnist-conditional fashion-mnist --seeds 3 --data-dir FOLDER
    python benchmarks/published.py mnist-paper --seeds 1 --data-dir FOLDER

Final weights, no choice of the best moment; --jobs trainings at a time, on one core each. Training states are kept in
--out, so that a stopped script goes on where it was. Scores go to benchmarks/results/published.json, and from all that
is there the tables are written to benchmarks/results/published.md. The recipe mnist-paper is trained once with the
average of G's weights kept beside them, which changes nothing in the training: the last weights are the paper's
recipe, their average is the recipe mnist-paper-averaged; both are scored along the way.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
EPOCH = 500  # steps of mnist-paper
MILESTONES = [EPOCH * e for e in (5, 10, 20, 30, *range(50, 10_000, 25))]
SAVE_EVERY = 2500
SAMPLES = 10_000  # scored of images; of points 2,500 as PacGAN, and 10,000 besides

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np  # noqa: E402

from minigan import GAN, checkpoint, load, metrics, recipes  # noqa: E402
from minigan.classifier import Classifier  # noqa: E402


def train(recipe, seed, folder, data, score, steps=None):
    """Train one seed of a recipe, or go on with it, and return its last row of scores.

    score(gan, last) gives a dict or None; what it gives is kept, one line for each step, in folder/scores.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "scores.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    options = {name: v for name, v in recipes.load(recipe).items() if name != "data"} | {"seed": seed}
    if recipe == "mnist-paper":
        options["average"] = 0.999
    if steps:
        options["steps"] = steps
    if rows and rows[-1]["step"] >= options["steps"]:
        return rows[-1]
    if (folder / checkpoint.NAME).exists():
        gan, extra, _ = checkpoint.load(folder, data, backend="numpy", **({"steps": steps} if steps else {}))
        seconds = float(extra.get("seconds", 0))
    else:
        gan, seconds = GAN(**options, backend="numpy").build(data), 0.0
    done = {row["step"] for row in rows}
    last = gan.step == gan.steps
    while gan.steps not in done:
        if not last:  # else it was stopped while its last state was scored
            began = time.perf_counter()
            gan.train_step()
            last = gan.step == gan.steps
            if gan.step % gan.report_every == 0 or last:
                gan.report()  # raises Diverged
            seconds += time.perf_counter() - began
            if gan.step % SAVE_EVERY == 0 or last:
                checkpoint.save(folder, gan, {"seconds": seconds})
        if gan.step not in done and (scores := score(gan, last)):
            done.add(gan.step)
            rows.append({"recipe": recipe, "seed": seed, "step": gan.step, "seconds": round(seconds, 1), **scores})
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{recipe} seed {seed}: step {gan.step} of {gan.steps}, {seconds:.0f} s", flush=True)
    return rows[-1]


def score_points(data):
    """Mode coverage of 2,500 samples, as in PacGAN's table, and of 10,000."""

    def score(gan, last):
        if not last:
            return None
        few, many = (
            metrics.mode_coverage(gan.sample(n, seed=gan.seed), data.modes, data.sigma) for n in (2500, SAMPLES)
        )
        return few | {f"many_{name}": value for name, value in many.items()}

    return score


def score_images(data):
    """Every measure for images; of mnist-paper along the way, of the last weights and of their average."""
    classifier = None

    def score(gan, last):
        nonlocal classifier
        paper = data.name == "mnist-paper"
        if not (last or (paper and gan.step in MILESTONES)):
            return None
        classifier = classifier or Classifier(seed=0).fit(data.X, data.labels)
        scores = {"classifier": classifier.accuracy(data.X_test, data.labels_test)}
        for prefix, average in (("last_", False), ("", True)) if paper else (("", True),):
            labels = gan.draw_labels(SAMPLES, np.random.default_rng(gan.seed)) if gan.conditional else None
            fake = gan.sample(SAMPLES, seed=gan.seed, average=average, labels=labels)
            found = metrics.evaluate(data, fake, reference=last) | metrics.evaluate_images(data, fake, classifier)
            if gan.conditional:
                found["label_agreement"] = metrics.label_agreement(data, fake, labels, classifier)
            else:
                labels = classifier.predict(fake)
            found["class_recalls"] = metrics.recall_by_class(data, fake, labels).round(4).tolist()
            found["class_recall"] = float(np.mean(found["class_recalls"]))
            scores |= {prefix + name: value for name, value in found.items()}
        return scores

    return score


def one(recipe, seed, out, data_dir, steps):
    """Train and score one seed; the row goes to published.json by way of the parent."""
    data = load(recipes.load(recipe)["data"], data_dir)
    score = (score_points if data.modes is not None else score_images)(data)
    return train(recipe, seed, Path(out) / f"{recipe}-{seed}", data, score, steps)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipes", nargs="*", help="which to train; none: only write the tables anew")
    p.add_argument("--seeds", type=int, default=3, help="how many, from 0 on (default: 3)")
    p.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    p.add_argument("--steps", type=int, help="of a recipe without an end, such as mnist-paper (default: the recipe's)")
    p.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: 2)")
    p.add_argument("--data-dir", help="where the files of mnist and fashion-mnist are")
    p.add_argument("--out", default="runs/published", help="where training states go (default: runs/published)")
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        one(args.recipes[0], args.first, args.out, args.data_dir, args.steps)
        return
    waiting = [(recipe, seed) for recipe in args.recipes for seed in range(args.first, args.first + args.seeds)]
    running, failed = [], 0
    while waiting or running:
        while waiting and len(running) < args.jobs:
            recipe, seed = waiting.pop(0)
            command = [sys.executable, __file__, recipe, "--child", "--first", str(seed), "--out", args.out]
            command += ["--data-dir", args.data_dir] if args.data_dir else []
            command += ["--steps", str(args.steps)] if args.steps else []
            running.append(subprocess.Popen(command))
        time.sleep(0.5)
        failed += sum(bool(process.poll()) for process in running)
        running = [process for process in running if process.poll() is None]
    collect(Path(args.out))
    sys.exit(1 if failed else 0)


# -- The tables --------------------------------------------------------------------------------------------


def collect(out):
    """Add what lies in ``out`` to published.json and write published.md from it."""
    file = RESULTS / "published.json"
    rows = {(r["recipe"], r["seed"], r["step"]): r for r in (json.loads(file.read_text()) if file.exists() else [])}
    for log in sorted(out.glob("*/scores.jsonl")):
        for line in log.read_text().splitlines():
            r = json.loads(line)
            rows[r["recipe"], r["seed"], r["step"]] = {
                k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()
            }
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
    "Parzen": lambda r, prefix: f"{r[prefix + 'parzen']:.1f} ± {r[prefix + 'parzen_error']:.1f}",
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
        lines.append(["mean ± sd", *(spread(rows, c) for c in columns.values()), ""])
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def show(r, column, prefix=""):
    """A score of a row as text; ``column``: its name, or a function of the row."""
    value = column(r, prefix) if callable(column) else r[prefix + column]
    return f"{value:.4f}" if isinstance(value, float) else value


def least_share(rows, of):
    """The least recall within a class as a share of that of the same class in other rows, both means over the seeds."""
    mine, theirs = (np.mean([r["class_recalls"] for r in some], axis=0) for some in (rows, of))
    return float((mine / theirs).min())


def spread(rows, column):
    """Mean and standard deviation over the rows; of one row its value."""
    if callable(column):
        return ""
    values = [r[column] for r in rows]
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def tables(rows):
    """published.md"""
    parts = ["# The published numbers\n\nWritten by `python benchmarks/published.py`; final weights, every seed."]
    for recipe in dict.fromkeys(r["recipe"] for r in rows):
        mine = [r for r in rows if r["recipe"] == recipe]
        final = list({r["seed"]: r for r in mine}.values())  # the last step of each
        real, seed, epoch = final[-1], ("seed", lambda r: r["seed"]), ("epoch", lambda r: r["step"] // EPOCH)
        if "modes" in real:
            parts += [f"\n## {recipe}\n", table(final, POINTS, seed)]
            continue
        if recipe == "mnist-paper":
            parts += [f"\n## {recipe}\n", table(mine, IMAGES, epoch, "last_")]
            parts += ["\n## mnist-paper-averaged, from the same training\n", table(mine, IMAGES, epoch)]
        else:
            parts += [f"\n## {recipe}\n", table(final, IMAGES, seed)]
            plain = list({r["seed"]: r for r in rows if f"{r['recipe']}-conditional" == recipe}.values())
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
