"""What a run survives. Each part prints a table and puts it into benchmarks/results/reliability.md:

python benchmarks/reliability.py resume --cuts 100         stopped at random steps: bitwise the uninterrupted run
python benchmarks/reliability.py kill --times 200          kill -9 at random moments, saving every step
python benchmarks/reliability.py mutate --files 20000      damaged and hostile files: loaded right or refused
python benchmarks/reliability.py soak --steps 1000000      memory flat, no slow-down

All of them: some minutes. Needs Linux. tests/test_reliability.py runs a short sample of each.
"""

import argparse
import collections
import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import train
from minigan import GAN, MiniganError, checkpoint, files, load, plots, recipes
from minigan.runs import Run

RESULTS = Path(__file__).resolve().parent / "results" / "reliability.md"
PICTURES = ("samples.png", "curves.png", "training.gif")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=PARTS)
    p.add_argument("--cuts", type=int, default=100)
    p.add_argument("--times", type=int, default=200)
    p.add_argument("--files", type=int, default=20_000)
    p.add_argument("--steps", type=int, default=1_000_000)
    p.add_argument("--life", type=int, default=250, help="steps of a run to kill")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        good, lines = PARTS[args.part](Path(scratch), args)
    lines = [
        f"`python benchmarks/reliability.py {' '.join(sys.argv[1:])}`, seed {args.seed}, {machine()}, "
        f"{time.perf_counter() - start:.0f} s: **{'passed' if good else 'FAILED'}**",
        "",
        *lines,
    ]
    print("\n".join(lines))
    publish(args.part, lines)
    return 0 if good else 1


def machine():
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{time.strftime('%Y-%m-%d')}, {model[1] if model else platform.machine()}, {os.cpu_count()} cores, Linux "
        f"{platform.release()}, Python {platform.python_version()}, NumPy {np.__version__}"
    )


def publish(part, lines):
    """Replace one section of the results."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    sections[part] = "\n".join(lines) + "\n\n"
    RESULTS.parent.mkdir(exist_ok=True)
    head = "# Reliability\n\nWritten by `benchmarks/reliability.py`, which says what each part does.\n\n"
    RESULTS.write_text(
        head + "\n".join(f"## {name}\n\n{sections[name].rstrip()}\n" for name in PARTS if name in sections)
    )


def table(head, rows):
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, row)) + " |" for row in cells]


# ------------------------------------------------------------------------------------------- comparing runs
def differences(a, b):
    """What two finished runs do not have in common, bit for bit; the times of saving may differ."""
    found = []
    with np.load(a / checkpoint.NAME) as one, np.load(b / checkpoint.NAME) as two:
        if one.files != two.files:
            found.append("arrays")
        found += [name for name in one.files if one[name].tobytes() != two[name].tobytes()]
    both = {path.name for path in (a / "samples").iterdir()} & {path.name for path in (b / "samples").iterdir()}
    for name in ("config.json", "metrics.csv", "scores.json", *PICTURES, *(f"samples/{name}" for name in both)):
        one, two = ((folder / name).read_bytes() if (folder / name).exists() else None for folder in (a, b))
        if one != two:
            found.append(name)
    return found


@contextlib.contextmanager
def patched(target, name, new):
    """target.name = new(old), for a while."""
    old = getattr(target, name)
    setattr(target, name, new(old))
    try:
        yield
    finally:
        setattr(target, name, old)


def tiny(recipe, optimizer, scratch, rng):
    """Arguments of train.py: a recipe with small networks and few steps, and with everything that is random."""
    options, steps = recipes.load(recipe), int(rng.integers(30, 70))
    small = lambda layers: re.sub(r"(?<![.\d])\d{2,}\b", "16", layers)
    args = {
        "recipe": recipe, "optimizer": optimizer, "steps": steps, "batch-size": 16,
        "generator": small(options["generator"]) + ", dropout 0.95",
        "discriminator": "dropout 0.9, " + small(options["discriminator"]),
        "r1": rng.choice([0.02, 0.1]), "average": rng.choice([0.9, 0.999]), "k": rng.integers(1, 4),
        "report-every": rng.integers(1, 9), "save-every": rng.choice([rng.integers(10, 25), "0.1s"]),
        "seed": rng.integers(1000), "backend": "numpy",
    }  # fmt: skip
    if optimizer == "adam":
        args["lr"] = 0.001
    if "mnist" in options["data"]:  # the recipe, with data that need no download
        args["data"], random = scratch / f"{recipe}.npz", np.random.default_rng(0)
        np.savez(args["data"], X=random.integers(0, 256, (120, 28, 28), np.uint8), labels=random.integers(0, 3, 120))
    if options.get("cluster_parts"):
        args["clusters"], args["cluster-parts"] = 3, 12
    if options.get("update") == "simultaneous":
        args["k"] = 1
    return [f"--{name}={value}" for name, value in args.items()] + ["--quiet"] + ["--gif"] * (rng.random() < 0.2)


class Killed(BaseException):
    """As kill -9: nothing is saved on the way out."""


def cut(args, step, how):
    """Run train.py's main until a step, and stop it there by a signal or as by kill -9; returns the exit code."""

    def stopping(train_step):
        def step_and_stop(gan):
            train_step(gan)
            if gan.step == step:
                if how == "killed":
                    raise Killed
                signal.raise_signal(how)

        return step_and_stop

    with patched(GAN, "train_step", stopping):
        try:
            return train.main([str(arg) for arg in args])
        except Killed:
            return 137


def resume(scratch, args):
    """Cut runs of all recipes at random steps, resume them, compare with the uninterrupted ones."""
    rng = np.random.default_rng(args.seed)
    cases = [(recipe, optimizer) for recipe in recipes.names() for optimizer in ("sgd", "adam")]
    cuts, wrong, options = collections.Counter(), [], {}
    for i in range(args.cuts):
        recipe, optimizer = case = cases[i % len(cases)]
        if i < len(cases) or i % (3 * len(cases)) < len(cases):  # options anew; otherwise another cut of the same run
            options[case] = tiny(recipe, optimizer, scratch, rng)
            shutil.rmtree(scratch / f"{recipe}-{optimizer}", ignore_errors=True)
            assert train.main([*options[case], "--out", str(scratch / f"{recipe}-{optimizer}")]) == 0
        steps = int(re.search(r"--steps=(\d+)", " ".join(options[case]))[1])
        part = scratch / "part"
        shutil.rmtree(part, ignore_errors=True)
        start, done = [*options[case], "--out", part], 0
        for _ in range(rng.integers(1, 4)):
            if done + 1 >= steps:
                break
            done = int(rng.integers(done + 1, steps))
            how = rng.choice(np.array([signal.SIGINT, signal.SIGTERM, "killed"], object))
            if how == "killed" and not (part / checkpoint.NAME).exists():
                how = signal.SIGINT
            cut(start, done, how)
            cuts[case] += 1
            start = ["--resume", part, "--quiet"]
            done = checkpoint.load(part)[0].step
        code = train.main([str(arg) for arg in start])
        different = differences(scratch / f"{recipe}-{optimizer}", part) if code == 0 else [f"exit code {code}"]
        if different:
            wrong.append(f"{recipe}, {optimizer}, cut {i}: {', '.join(different)}; {' '.join(options[case])}")
    names = recipes.names()
    rows = [[name, *(cuts[name, optimizer] for optimizer in ("sgd", "adam"))] for name in names]
    return not wrong, [
        f"{args.cuts} runs, stopped {sum(cuts.values())} times at random steps by SIGINT, SIGTERM or as by kill -9, "
        "with dropout, R1, averaging, k of 1 to 3, a fifth with --gif, saving every 10 to 25 steps or 0.1 seconds; "
        "then resumed to the end. Different from the uninterrupted run in any bit of the checkpoint, metrics.csv, the "
        f"scores or a picture: **{len(wrong)}**. Networks are shrunk to width 16; mnist's images are random ones.",
        "", *table(["recipe", "stops, SGD", "stops, Adam"], rows), *wrong[:20],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- kill -9
RUNS_TO_KILL = (
    ["--recipe=ring", "--optimizer=sgd", "--k=2", "--discriminator=dropout 0.9, 16, leaky_relu"],
    [
        "--recipe=digits",
        "--optimizer=adam",
        "--lr=0.001",
        "--generator=16, relu, dropout 0.9",
        "--discriminator=16, relu",
    ],
    ["--recipe=gaussians", "--optimizer=sgd", "--gif", "--discriminator=16, tanh"],
)
COMMON = ["--generator=16, relu", "--batch-size=16", "--average=0.9", "--r1=0.1", "--save-every=1", "--report-every=1",
          "--quiet", "--backend=numpy"]  # fmt: skip


def life(args, drawn):
    """Fork a process that runs train.py's main; returns (its id, a pipe from which it tells what it has done)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        os.close(read)

        def telling(letter):
            def wrap(function):
                def tell(*arguments):
                    value = function(*arguments)
                    gan = next(a for a in arguments if isinstance(a, GAN))
                    os.write(write, b"%s%d\n" % (letter, gan.step))
                    return value

                return tell

            return wrap

        with patched(GAN, "train_step", telling(b"t")), patched(checkpoint, "save", telling(b"s")):
            with pictures(drawn):
                code = train.main([str(arg) for arg in args])
        os.write(write, b"x%d\n" % code)
    except BaseException:
        os.write(write, b"x99\n" + traceback.format_exc()[-600:].replace("\n", " ").encode())
    finally:
        os._exit(0)


def pictures(drawn):
    """Draw samples.png, or, as that takes 20 times as long as the rest of a step, write its numbers instead."""

    def numbers(draw):
        def write(path, data, fake, probability, title, labels):
            plots._write(path, np.ascontiguousarray(fake).tobytes())

        return draw if drawn else write

    return patched(plots, "samples", numbers)


def told(pipe):
    """(last step trained, last step saved, exit code or None, error) as far as the process came."""
    with os.fdopen(pipe, "rb") as f:
        lines = f.read().decode().split("\n")
    of = lambda letter: [int(line[1:]) for line in lines if re.fullmatch(letter + r"\d+", line)]
    last = lambda letter: (of(letter) or [None])[-1]
    return last("t"), last("s"), last("x"), " ".join(line for line in lines if len(line) > 40)


def where(folder):
    """What a killed process was doing, by what it has left."""
    if not (folder / checkpoint.NAME).exists():
        return "between the two renames of a checkpoint"
    if (folder / f"{checkpoint.NAME}.part").exists():
        return "while writing a checkpoint"
    if list(folder.glob(".*.tmp")) + list(folder.glob("**/*.part")):
        return "while writing another file"
    return "elsewhere: computing, drawing, starting"


def kill(scratch, args):
    """Kill runs that save every step, and resume them, again and again; at the end compare with the whole run."""
    rng = np.random.default_rng(args.seed)
    kills, wrong, moments, lost, runs = 0, [], collections.Counter(), collections.Counter(), 0
    while kills < args.times:
        drawn = runs % 4 == 3
        options = [
            *COMMON,
            *RUNS_TO_KILL[runs % len(RUNS_TO_KILL)],
            f"--steps={40 if drawn else args.life}",
            f"--seed={runs}",
        ]
        whole, part = scratch / "whole", scratch / "part"
        for folder in (whole, part):
            shutil.rmtree(folder, ignore_errors=True)
        pid, pipe = life([*options, "--out", whole], drawn)
        assert (outcome := told(pipe))[2] == 0, outcome
        os.waitpid(pid, 0)
        start, step, finished = [*options, "--out", part], 0, False
        for _ in range(25):
            complete = (part / "scores.json").exists()
            pid, pipe = life(start, drawn)
            while step == 0 and not (part / checkpoint.NAME).exists():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 1.0 if drawn else 0.2))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            trained, saved, code, error = told(pipe)
            if code is not None:  # it had finished before
                finished = code == 0 or (code == 2 and complete)  # the life before was killed with all done
                if not finished:
                    wrong.append(f"run {runs}: exit code {code} {error}")
                break
            kills += 1
            moments[where(part)] += 1
            try:
                gan, _, _ = checkpoint.load(part)
            except MiniganError as failure:
                wrong.append(f"run {runs}, kill {kills}: unreadable: {failure}")
                break
            lost[max(trained or 0, step) - gan.step] += 1
            if gan.step < (saved or step) or (trained or step) - gan.step > 1:
                wrong.append(f"run {runs}, kill {kills}: trained {trained}, saved {saved}, loaded {gan.step}")
            start, step = ["--resume", part, "--quiet"], gan.step
            if kills == args.times:
                break
        if not finished:
            complete = (part / "scores.json").exists()
            pid, pipe = life(start, drawn)
            code, error = told(pipe)[2:]
            os.waitpid(pid, 0)
            finished = code == 0 or (code == 2 and complete)
            if not finished:
                wrong.append(f"run {runs} could not be finished: {code} {error}")
        different = differences(whole, part) if finished else []
        if different:
            wrong.append(f"run {runs}: {', '.join(different)} differ")
        runs += 1
    return not wrong, [
        f"{kills} times kill -9 in {runs} runs that save every step, each resumed at once (so the lock is free) and in "
        "the end compared, every bit, with the uninterrupted run. A fourth of the runs draw samples.png, the others "
        f"write its numbers, so that more kills hit the checkpoint. Anything wrong: **{len(wrong)}**.", "",
        *table(["the kill came", "times"], moments.most_common()), "",
        *table(["steps trained that had to be trained again", "times"], sorted(lost.items())), *wrong[:20],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- damaged and hostile files
EVIL = (0, 1, -1, 2**31, 2**40, -(2**40), 2**63, 10**30, 1e300, "x", "", None, True, [], [[[]]], {}, "9" * 500,
        "1" + ",1" * 900, "99999999, relu", "99999999x9999999")  # fmt: skip


def mutated(content, rng):
    """(kind of damage, damaged bytes)"""
    n, data = len(content), bytearray(content)
    i, j = sorted(int(v) for v in rng.integers(0, n + 1, 2))
    size = int(2 ** rng.uniform(0, 10))
    kind = rng.choice(["truncated", "bits flipped", "blocks swapped", "block inserted", "block zeroed", "block lost",
                       "number changed", "start changed", "end changed"])  # fmt: skip
    match kind:
        case "truncated":
            del data[i:]
        case "bits flipped":
            for k in rng.integers(0, n, rng.integers(1, 9)):
                data[k] ^= 1 << int(rng.integers(8))
        case "blocks swapped":
            size = min(size, j - i, n - j)
            data[i : i + size], data[j : j + size] = data[j : j + size], data[i : i + size]
        case "block inserted":
            data[i:i] = rng.bytes(size) if rng.random() < 0.5 else content[j : j + size]
        case "block zeroed":
            data[i : i + size] = bytes(min(size, n - i))
        case "block lost":
            del data[i : i + size]
        case "number changed":  # in text, or in bytes that look like it
            found = list(re.finditer(rb"\d+", content))
            if found:
                m = found[rng.integers(len(found))]
                data[m.start() : m.end()] = rng.choice([b"9" * 20, b"-1", b"0", b"1e999", b"nan", b"7", b"[" * 999])
        case "start changed" | "end changed":
            k = int(rng.integers(0, min(n, 120))) if kind[0] == "s" else n - int(rng.integers(1, min(n, 120)))
            value = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\xff" * 8, b"\0\0\1\0", b"\1"])
            data[k : k + len(value)] = value
    return str(kind), bytes(data)


def npy(array, **header):
    """The bytes of an .npy file, whose header may lie."""
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, np.lib.format.header_data_from_array_1_0(array) | header)
    return f.getvalue() + array.tobytes()


def bombs(megabytes=400):
    """A gzipped IDX file and a deflated .npz whose content is much larger than they are, honest about it or not."""
    zeros, found = bytes(2**20), {}
    for honest in (True, False):
        f = io.BytesIO()
        with gzip.GzipFile(fileobj=f, mode="wb", compresslevel=1, mtime=0) as z:
            rows = megabytes if honest else 10
            z.write(b"\0\0\x08\x03" + b"".join(v.to_bytes(4, "big") for v in (rows, 1024, 1024)))
            for _ in range(megabytes):
                z.write(zeros)
        g = io.BytesIO()
        with zipfile.ZipFile(g, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z, z.open("X.npy", "w") as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (megabytes if honest else 10, 1024, 1024)}
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(megabytes):
                member.write(zeros)
        found[honest] = f.getvalue(), g.getvalue()
    return found


class Files:
    """Good files of every kind, made once; and for each kind how it is read, and what reading it right means."""

    def __init__(self, scratch):
        self.scratch = scratch
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (20, 8, 8), np.uint8)
        idx = b"\0\0\x08\x03" + b"".join(v.to_bytes(4, "big") for v in images.shape) + images.tobytes()
        X, y = rng.standard_normal((20, 3)).astype(np.float32), rng.integers(0, 9, 20)
        archives = []
        for save in (np.savez, np.savez_compressed):
            f = io.BytesIO()
            save(f, X=X, y=y)
            archives.append(f.getvalue())
        self.images, self.X, self.sha256, self.bombs = images, X, hashlib.sha256(idx).hexdigest(), bombs()
        table = "a,b,c\n" + "\n".join(",".join(f"{v:.3f}" for v in row) for row in X) + "\n"
        np.save(scratch / "data.npy", X)
        self.run = scratch / "run"
        args = ["--data", scratch / "data.npy", "--generator=6, relu", "--discriminator=dropout 0.9, 6, relu",
                "--k=2", "--batch-size=4", "--latent-dim=3", "--steps=9", "--report-every=2", "--save-every=4",
                "--quiet", "--backend=numpy", "--optimizer=adam", "--lr=0.001", "--out", self.run]  # fmt: skip
        with pictures(False):
            cut(args, 7, signal.SIGINT)
        (self.run / checkpoint.PREVIOUS).unlink()
        self.content = {path.name: path.read_bytes() for path in self.run.iterdir() if path.is_file()}
        self.data = load(str(scratch / "data.npy"))
        with np.load(self.run / checkpoint.NAME) as f:
            self.arrays = {name: f[name] for name in f.files}
        self.meta = json.loads(bytes(self.arrays["meta"]))
        self.kinds = {
            "checkpoint": (self.content[checkpoint.NAME], self.read_checkpoint, 5),
            "forged checkpoint": (None, self.read_forged, 3),
            "config.json": (self.content["config.json"], self.read_run("config.json"), 2),
            "metrics.csv": (self.content["metrics.csv"], self.read_run("metrics.csv"), 1),
            "IDX": (idx, self.read_idx, 2),
            "IDX, gzip": (gzip.compress(idx, mtime=0), self.read_idx, 2),
            "npz": (archives[0], self.read_npz, 2),
            "npz, deflated": (archives[1], self.read_npz, 2),
            "npy": (npy(X), self.read_rows("npy"), 2),
            "csv": (table.encode(), self.read_rows("csv"), 3),
            "lying header or bomb": (None, self.read_lie, 1),
        }
        self.weights = np.array([weight for *_, weight in self.kinds.values()], float)
        self.weights /= self.weights.sum()

    def file(self, name, content):
        path = self.scratch / name
        path.write_bytes(content)
        return str(path)

    # Each takes the damaged bytes, and raises MiniganError (good), or returns whether what was read is right.
    def read_checkpoint(self, content, rng):
        (self.run / checkpoint.NAME).write_bytes(content)
        gan, _, _ = checkpoint.load(self.run, self.data if rng.random() < 0.5 else None)
        gan.sample(3)
        return self.same_run(gan)

    def same_run(self, gan):
        state = {name: array.copy() for name, array in checkpoint._live_arrays(gan).items()}
        equal = all(np.array_equal(state[name], self.arrays[name]) for name in state)
        return equal and gan.options() == self.meta["options"] and gan.step == self.meta["step"]

    def forged(self, rng):
        """A checkpoint with one thing changed, and the right checksum."""
        arrays, meta = dict(self.arrays), json.loads(json.dumps(self.meta))
        del arrays["checksum"]
        if rng.random() < 0.7:
            place = meta
            while True:
                keys = list(place) if isinstance(place, dict) else range(len(place))
                key = keys[rng.integers(len(keys))]
                if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.2:
                    break
                place = place[key]
            place[key] = EVIL[rng.integers(len(EVIL))]
            if rng.random() < 0.1 and isinstance(place, dict):
                del place[key]
        else:
            name = rng.choice([name for name in arrays if name != "meta"])
            a = arrays[name]
            arrays[name] = [a[:-1], a.astype(np.float64), a[None], a.astype("S8"), a[:0], a.astype(">f4")][
                rng.integers(6)
            ]
            if rng.random() < 0.2:
                del arrays[name]
            if rng.random() < 0.2:
                arrays["../../outside"] = a
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        arrays["checksum"] = np.frombuffer(checkpoint._checksum(arrays), np.uint8)
        f = io.BytesIO()
        np.savez(f, **arrays)
        return f.getvalue()

    def read_forged(self, _, rng):
        """Its maker can have made a good one: right is that it works."""
        (self.run / checkpoint.NAME).write_bytes(self.forged(rng))
        gan, _, _ = checkpoint.load(self.run, self.data if rng.random() < 0.7 else None)
        if gan.data.X is not None:
            for _ in range(3):
                gan.train_step()
            gan.report()
        return gan.sample(3).shape == (3, 3)

    def read_run(self, name):
        def read(content, rng):
            for file, good in self.content.items():
                (self.run / file).write_bytes(content if file == name else good)
            run = Run.resumed(self.run, {})
            try:
                with patched(plots, "curves", lambda old: lambda path, log: None), pictures(False):
                    run.draw_curves()
                    run.gan.train_step()
                    run.log({"step": 8, "V": 1.0})
                    run.gan, again = checkpoint.load(self.run, self.data)[0], run.gan
                return self.same_run(run.gan) and again.step == 8 and again.options() == run.gan.options()
            finally:
                run.close()

        return read

    def read_idx(self, content, rng):
        return np.array_equal(files.read_idx(self.file("file", content), self.sha256), self.images)

    def read_npz(self, content, rng):
        return np.array_equal(load(self.file("file.npz", content)).X, self.X)

    def read_rows(self, suffix):
        """Without a checksum any numbers may be the right ones; but they are finite, and there are no more of them."""

        def read(content, rng):
            data = load(self.file(f"file.{suffix}", content))
            return np.isfinite(data.X).all() and data.X.nbytes <= 4 * len(content) and data.X.shape[1] == data.features

        return read

    def read_lie(self, _, rng):
        shape = tuple(int(v) for v in rng.choice([0, 1, -1, 3, 20, 2**20, 2**40, 2**62], rng.integers(1, 5)))
        lie = npy(self.X, shape=shape, descr=str(rng.choice(["<f4", "|u1", "<f8", "|O", "<U9999999", "|V0", "<M8[s]"])))
        gz, zipped = self.bombs[bool(rng.integers(2))]
        match rng.integers(6):
            case 0:
                load(self.file("file.npy", lie))
            case 1:
                load(self.file("file.npy", b"\x93NUMPY\2\0" + rng.bytes(4) + lie[10:]))
            case 2:
                with zipfile.ZipFile(self.scratch / "file.npz", "w", int(rng.choice([0, 8]))) as z:
                    z.writestr(str(rng.choice(["X.npy", "/etc/X.npy", "../X"])), lie)
                load(str(self.scratch / "file.npz"))
            case 3:
                dims = b"".join(int(v).to_bytes(4, "big") for v in rng.integers(0, 2**32, 3))
                files.read_idx(self.file("file", b"\0\0\x08\3" + dims + bytes(99)))
            case 4:
                files.read_idx(self.file("file", gz))
            case 5:
                load(self.file("file.npz", zipped))
        return math.prod(shape) == self.X.size  # anything else is a lie, and must not be believed


class Hang(BaseException):
    pass


def try_one(good, seed, index):
    """(kind, damage, "right" | "refused" | what went wrong, seconds)"""
    rng = np.random.default_rng([seed, index])
    kind = str(rng.choice(list(good.kinds), p=good.weights))
    content, read, _ = good.kinds[kind]
    damage, content = mutated(content, rng) if content else ("made up", None)
    start = time.perf_counter()

    def hang(*_):
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        outcome = "right" if read(content, rng) else "WRONG"
    except MiniganError as error:
        outcome, cause = "refused", error
        while cause is not None:
            if isinstance(cause, MemoryError):
                outcome = "ASKED FOR MEMORY"
            cause = cause.__cause__ or cause.__context__
        if "\n" in str(error).strip() and outcome == "refused":
            outcome = "MORE THAN A SENTENCE"
    except Hang:
        outcome = "HANG"
    except BaseException as error:
        outcome = (
            f"TRACEBACK {type(error).__name__}: {str(error)[:200]} in {traceback.extract_tb(error.__traceback__)[-1]}"
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return kind, damage, outcome, time.perf_counter() - start


def try_many(good, seed, indices, headroom=2 * 2**30):
    """try_one in a process of its own, which may take `headroom` bytes of address space; (results, peak MB above)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + headroom, now + headroom))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with os.fdopen(write, "w") as f, np.errstate(over="ignore", invalid="ignore"):
                for index in indices:
                    f.write(json.dumps([index, *try_one(good, seed, index)]) + "\n")
                    f.flush()
                peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
                f.write(json.dumps([None, peak]) + "\n")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        *results, (last, peak) = [json.loads(line) for line in f] or [(0, 0)]
    os.waitpid(pid, 0)
    assert last is None, f"the process died at file {len(results)} of {indices}"
    return results, peak


def mutate(scratch, args):
    """Damage files of every kind in every way, and read them."""
    good = Files(scratch)
    counts, wrong, slowest, peak = collections.Counter(), [], 0.0, 0.0
    for first in range(0, args.files, 1000):
        results, megabytes = try_many(good, args.seed, range(first, min(first + 1000, args.files)))
        peak = max(peak, megabytes)
        for index, kind, damage, outcome, seconds in results:
            slowest = max(slowest, seconds)
            counts[kind, outcome if outcome in ("right", "refused") else "wrong"] += 1
            if outcome not in ("right", "refused"):
                wrong.append(f"file {index}, {kind}, {damage}: {outcome}")
    rows = [[kind, *(counts[kind, outcome] for outcome in ("right", "refused", "wrong"))] for kind in good.kinds]
    rows.append(["all", *(sum(row[i] for row in rows) for i in (1, 2, 3))])
    return not wrong and peak < 500 and slowest < 5, [
        f"{args.files} files, truncated, with bits flipped, blocks swapped, inserted, zeroed or lost, numbers and "
        f"headers changed; checkpoints forged with the right checksum; zip and gzip bombs of 400 MB. The slowest took "
        f"{slowest:.2f} s; the most memory above normal was {peak:.0f} MB. Right: a checkpoint, config.json or "
        "metrics.csv gives the same run, an IDX or npz file the same numbers, an npy or csv file finite ones; a forged "
        "checkpoint works.", "",
        *table(["file", "read right", "refused in a sentence", "anything else"], rows), *wrong[:20],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- a million steps
def soak(scratch, args):
    """A long run through train.py, watched: memory and speed in each tenth."""
    marks, every = [], max(1, args.steps // 10)

    def watching(train_step):
        def step(gan):
            train_step(gan)
            if gan.step % every == 1 or gan.step % every == 0:
                memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
                marks.append((gan.step, time.perf_counter(), memory, time.process_time()))

        return step

    with patched(GAN, "train_step", watching):
        code = train.main([
            "--recipe=ring", "--generator=16, relu", "--discriminator=16, leaky_relu 0.2", "--batch-size=32", "--quiet",
            f"--steps={args.steps}", f"--save-every={every}", "--backend=numpy", f"--seed={args.seed}",
            "--out", str(scratch / "soak"),
        ])  # fmt: skip
    tenths = [  # from its first step to its last, without the checkpoint and the picture between
        ((b[0] - a[0]) / (b[1] - a[1]), b[2], (b[0] - a[0]) / (b[3] - a[3]))
        for a, b in zip(marks[::2], marks[1::2], strict=True)
    ]
    speeds, memory, _ = zip(*tenths, strict=True)
    ratio, growth = speeds[-1] / speeds[0], memory[-1] - memory[4]
    return code == 0 and ratio >= 0.9 and growth < 10, [
        f"{args.steps} steps of a small ring network with train.py, its log every 100 steps, a checkpoint and a "
        f"picture ten times. Speed of the last tenth over the first: **{ratio:.3f}**. Memory (RSS) at the end of the "
        f"last tenth less that of the fifth (the first pictures load matplotlib): **{growth:+.1f} MB**.", "",
        *table(["tenth", "steps a second", "RSS, MB", "steps a second of CPU"],
               [[i, f"{s:,.0f}", f"{m:.1f}", f"{c:,.0f}"] for i, (s, m, c) in enumerate(tenths, 1)]),
    ]  # fmt: skip


PARTS = {"resume": resume, "kill": kill, "mutate": mutate, "soak": soak}

if __name__ == "__main__":
    sys.exit(main())
