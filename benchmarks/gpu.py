"""Everything that needs a GPU: the tests, the gradient table, and how long a training step takes.

    python benchmarks/gpu.py                 # all of it, about ten minutes; see gpu.sh
    python benchmarks/gpu.py --only steps --workloads ring --rounds 15
    python benchmarks/gpu.py --dry-run       # the same code on a CPU, with tiny networks: only shows that it runs

A training step is timed as in step.py: each contender in a process of its own, bursts in turns and in a rotating
order, the others asleep, every burst ended by waiting for the device. Before that each one does three steps on
minigan's draws and is compared with minigan on NumPy. Matrix products are float32, once as they are and once with
TF32, which rounds their inputs to 10 bits; every library is told which (JAX would use TF32 unasked). Compilation and
the upload of the data set are not timed. The results are written after each part.

minigan replays its steps as CUDA graphs, see graph.py; and, as "minigan, kernel by kernel", it launches their kernels
one by one. The first is compared with the second. PyTorch's mode "reduce-overhead" uses CUDA graphs too, and a JAX step
is one compiled program.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.peers import WORKLOADS, Jax, JaxScan, Minigan, TorchCompile, TorchEager, disagreement  # noqa: E402
from minigan.backend import Backend  # noqa: E402
from minigan.errors import MiniganError  # noqa: E402
from minigan.gan import GAN  # noqa: E402

NAMES = ("ring", "images-512", "images-1200", "paper")
PARTS = ("tests", "gradients", "steps")


# --------------------------------------------------------------------------- the contenders of peers.py on a GPU


class KernelByKernel(GAN):
    """A GAN whose steps are not recorded as graphs, because it is a subclass."""


class MiniganOn(Minigan):
    """minigan on a backend, kernel by kernel, from the same weights: they are drawn on the host."""

    def __init__(self, workload, backend):
        start = workload.gan()
        self.gan = KernelByKernel(**{**start.options(), "backend": backend}).build(start.data)

    def run(self, n):
        super().run(n)
        self.gan.backend_used.synchronize()
        return n

    def follow(self, draws):
        to = self.gan.backend_used.to_device
        super().follow(
            replace(draw, x=to(draw.x), z=list(map(to, draw.z)), uniform=[list(map(to, run)) for run in draw.uniform])
            for draw in draws
        )

    def theta(self):
        return tuple(self.gan.backend_used.to_host(theta) for theta in super().theta())


class Always:
    """A generator that gives every place the same numbers whenever it asks, whether for one step or for many."""

    def __init__(self, backend):
        self.backend = backend

    def standard_normal(self, dtype, out):
        self._fill(np.random.default_rng(1).standard_normal(out.shape[-2:], dtype), out)

    def random(self, dtype, out):
        self._fill(np.random.default_rng(2).random(out.shape[-2:], dtype), out)

    def _fill(self, values, out):
        out[...] = self.backend.to_device(values)


class MiniganGraph:
    """The same steps as graphs. They draw for many steps at once, so they are held against the GAN that launches
    kernel by kernel with random numbers that are always the same."""

    def __init__(self, workload, backend):
        self.start, self.backend = workload.gan(), backend
        self.gan = self.build(GAN)

    def build(self, kind):
        return kind(**{**self.start.options(), "backend": self.backend}).build(self.start.data)

    def run(self, n):
        for _ in range(n):
            self.gan.train_step()
        self.gan.backend_used.synchronize()
        return n

    def disagreement(self, steps=3):
        """As ``peers.disagreement``."""
        graphed, plain = self.build(GAN), self.build(KernelByKernel)
        theta = lambda gan: [gan.backend_used.to_host(net.theta).copy() for net in (gan.G, gan.D)]
        start = theta(plain)
        for gan in (graphed, plain):
            gan.rng.noise = gan.rng.dropout = Always(gan.backend_used)
            for _ in range(steps):
                gan.train_step()
        found = zip(theta(graphed), theta(plain), start, strict=True)
        # np.max, because max passes over NaN
        return float(np.max([np.linalg.norm(a - b) / np.linalg.norm(b - first) for a, b, first in found]))


class TorchOn(TorchEager):
    """PyTorch with everything on a device, what it draws too."""

    def __init__(self, workload, device, tf32):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = tf32
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("this PyTorch finds no GPU; pip install torch, the build for CUDA")
        self.device = device
        super().__init__(workload)

    def prepare(self):
        torch = self.torch
        self.X, self.G, self.D = (part.to(self.device) for part in (self.X, self.G, self.D))
        there = {name: partial(getattr(torch, name), device=self.device) for name in ("rand", "randn", "randint")}
        self.for_draw = SimpleNamespace(
            torch=SimpleNamespace(**there), workload=self.workload, dtype=self.dtype, X=self.X, keeps=self.keeps
        )
        super().prepare()

    def draw(self):
        return TorchEager.draw(self.for_draw)

    def run(self, n):
        super().run(n)
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return n

    def follow(self, draws):
        to = lambda arrays: [self.torch.from_numpy(a).to(self.device) for a in arrays]
        for draw in draws:
            self.update(*to([draw.x]), to(draw.z), [to(run) for run in draw.masks(draw.x.dtype)])

    def theta(self):
        flat = lambda net: np.concatenate([p.detach().cpu().numpy().T.ravel() for p in net.parameters()])
        return flat(self.G), flat(self.D)


class TorchGraphs(TorchOn, TorchCompile):
    """The whole step compiled, and replayed as a CUDA graph."""

    def prepare(self):
        super().prepare()
        for tensors in self.state:
            for tensor in tensors.values():
                self.torch._dynamo.mark_static_address(tensor)  # a graph may then write to it
        self.compiled = self.torch.compile(self.functional_update, fullgraph=True, mode="reduce-overhead")

    def note(self):
        """What stands below the table."""
        skipped = self.torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
        return f"CUDA graphs that could not be captured: {skipped}" if skipped else ""


def on_jax(kind):
    """Jax or JaxScan with a platform and a precision of matrix products."""

    def make(workload, device, tf32):
        import jax

        jax.config.update("jax_platforms", device)
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tf32 else "float32")
        return kind(workload)

    return make


CONTENDERS = {  # label, what it needs, how it is made
    "numpy": ("minigan, NumPy, on the CPU", None, lambda w, device, tf32: MiniganOn(w, "numpy")),
    "cupy": (
        "minigan, kernel by kernel",
        "cupy",
        lambda w, device, tf32: MiniganOn(w, "numpy" if device == "cpu" else "cupy"),
    ),
    "cupy-graph": ("minigan", "cupy", lambda w, device, tf32: MiniganGraph(w, "numpy" if device == "cpu" else "cupy")),
    "torch": ("PyTorch eager", "torch", TorchOn),
    "torch-graphs": ('torch.compile, "reduce-overhead"', "torch", TorchGraphs),
    "jax": ("JAX jit", "jax", on_jax(Jax)),
    "jax-scan": ("JAX lax.scan", "jax", on_jax(JaxScan)),
}
INSTALL = {
    "cupy": 'pip install "cupy-cuda13x[ctk]"',
    "torch": "pip install torch",
    "jax": 'pip install "jax[cuda13]"',
}


# ----------------------------------------------------------------------------------------- one step, timed


def work(pipe, name, workload, device, tf32):
    """A contender's process: build, compare with minigan, warm up; then time one burst whenever asked."""
    try:
        began = time.perf_counter()
        it = CONTENDERS[name][2](workload, device, tf32)
        differs = it.disagreement() if hasattr(it, "disagreement") else disagreement(it, workload)
        n, seconds = 1, 0.0
        while seconds < 0.2:
            n = 2 * it.run(n)
            before = time.perf_counter()
            done = it.run(n)
            seconds = time.perf_counter() - before
        note = it.note() if hasattr(it, "note") else ""
        pipe.send({"differs": differs, "ready": time.perf_counter() - began, "note": note})
        while True:
            n = max(1, round(pipe.recv() * done / seconds))
            it.run(max(1, n // 5))
            before = time.perf_counter()
            steps = it.run(n)
            pipe.send({"us": (time.perf_counter() - before) / steps * 1e6})
    except EOFError:
        pass  # the parent is done with us
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        pipe.send({"failed": f"{type(error).__name__}: {lines[0][:200]}"})


class Player:
    """The parent's end of one contender."""

    def __init__(self, name, tf32, workload, device):
        self.name, self.tf32, self.result, self.us = name, tf32, {}, []
        self.pipe, theirs = multiprocessing.Pipe()
        # Read when CuPy multiplies for the first time; and JAX shall leave the others some memory.
        os.environ.update(CUPY_TF32=str(int(tf32)), XLA_PYTHON_CLIENT_PREALLOCATE="false")
        self.process = multiprocessing.get_context("spawn").Process(
            target=work, args=(theirs, name, workload, device, tf32), daemon=True
        )
        self.process.start()
        theirs.close()

    def receive(self):
        try:
            self.result.update(self.pipe.recv())
        except EOFError:
            self.process.join()
            self.result["failed"] = f"its process ended with exit code {self.process.exitcode}"

    def burst(self, seconds):
        if "failed" in self.result:
            return
        try:
            self.pipe.send(seconds)
        except BrokenPipeError:
            pass  # the reason is in the pipe, or there is none
        self.receive()
        if "us" in self.result:
            self.us.append(self.result.pop("us"))

    def close(self):
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def time_steps(name, args):
    """All contenders on one workload: a dict for the table and the .json file."""
    workload = WORKLOADS[name].small() if args.dry_run else WORKLOADS[name]
    device, players, missing = "cpu" if args.dry_run else "cuda", [], []
    try:
        for contender, (label, needs, _) in CONTENDERS.items():
            if needs and not importlib.util.find_spec(needs) and not (args.dry_run and needs == "cupy"):
                missing.append(f"{label} is left out: {INSTALL[needs]}")
                continue
            players += [Player(contender, tf32, workload, device) for tf32 in ((False, True) if needs else (False,))]
        for player in players:  # all of them get ready at the same time
            player.receive()
        for i in range(args.rounds):
            for j in range(len(players)):
                players[(i + j) % len(players)].burst(args.seconds)
    finally:
        for player in players:
            player.close()
    rows = [{"contender": player.name, "tf32": player.tf32, "us": player.us, **player.result} for player in players]
    return {"workload": name, "rows": rows, "missing": missing}


# ------------------------------------------------------------------------------------------- tests and results


def run(command):
    """A command's outcome: its exit code, seconds, and what it said."""
    print("+", " ".join(command), flush=True)
    began = time.perf_counter()
    process = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    text = (process.stdout + process.stderr).strip()
    print(text, flush=True)
    return {
        "command": " ".join(command),
        "code": process.returncode,
        "seconds": time.perf_counter() - began,
        "text": text,
    }


def machine(backend):
    """What everything ran on: a dict of texts."""
    about = {"device": backend.device, "system": platform.platform(), "Python": platform.python_version()}
    if backend.name == "cupy":
        runtime = backend.xp.cuda.runtime
        about["driver supports CUDA"], about["CUDA runtime"] = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        properties = runtime.getDeviceProperties(0)
        about["compute capability"] = f"{properties['major']}.{properties['minor']}"
        about["memory"] = f"{properties['totalGlobalMem'] / 2**30:.0f} GiB"
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        about["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about["cores for NumPy"] = cores
    for package in importlib.metadata.distributions():
        name = (package.metadata["Name"] or "").lower()
        if re.fullmatch(r"numpy|cupy.*|torch|triton|jax|jaxlib|jax-cuda.*|nvidia-cublas.*", name):
            about[name] = package.version
    return {name: str(text) for name, text in about.items()}


def spread(values, digits=0):
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})" if values else ""


def table(result, dry_run):
    """The lines of one workload's table, in Markdown."""
    w = WORKLOADS[result["workload"]].small() if dry_run else WORKLOADS[result["workload"]]
    yield f"### {w.name}"
    yield ""
    yield f"G {w.latent_dim} | {w.generator} | {w.features}; D {w.features} | {w.discriminator} | 1;"
    yield f"batch {w.batch_size}, {w.update} update, {w.prior} z. µs per step: median (least-most) of the bursts."
    yield ""
    yield "| | float32 | minigan / it | difference | TF32 | minigan / it | difference | ready |"
    yield "|---|---|---|---|---|---|---|---|"
    rows, notes = {(row["contender"], row["tf32"]): row for row in result["rows"]}, []
    for name, (label, needs, _) in CONTENDERS.items():
        if (name, False) not in rows:
            continue
        cells, ready = [], ""
        for tf32 in (False, True) if needs else (False,):
            row, ours = rows[name, tf32], rows.get(("cupy-graph", tf32), {})
            if "failed" in row:
                cells += ["failed", "", ""]
                notes.append(f"{label}{', TF32' if tf32 else ''} failed: {row['failed']}")
                continue
            ratios = [a / b for a, b in zip(ours.get("us", []), row["us"], strict=False)]
            cells += [spread(row["us"]), spread(ratios, 2), f"{row['differs']:.0e}"]
            ready = f"{row['ready']:.0f} s"
            if row["note"]:
                notes.append(f"{label}{', TF32' if tf32 else ''}: {row['note']}")
        yield f"| {label} | " + " | ".join([*cells, *[""] * (6 - len(cells)), ready]) + " |"
    yield ""
    for note in [*notes, *result["missing"]]:
        yield f"- {note}"
    yield ""


def report(results):
    """All results as Markdown."""
    yield f"# {results['machine']['device']}"
    yield ""
    dry_run = " --dry-run`, on a CPU, with tiny networks: its times mean nothing." if results["dry_run"] else "`."
    yield f"Written by `benchmarks/gpu.sh{dry_run}"
    yield ""
    for name, text in results["machine"].items():
        yield f"- {name}: {text}"
    yield ""
    for part in ("tests", "gradients"):
        if part in results:
            outcome = results[part]
            verdict = "passed" if outcome["passed"] else f"FAILED (exit code {outcome['code']})"
            yield f"## `python {outcome['command']}`: {verdict}, {outcome['seconds']:.0f} s"
            yield from ("", "```", *outcome["text"].splitlines()[-60:], "```", "")
    if "steps" in results:
        yield "## One training step"
        yield ""
        yield "*difference*: of the weight changes of three steps from those of minigan on NumPy, relative, with equal"
        yield "weights and draws; float32 gives 1e-4 or less, or somewhat more if a unit turns at its kink, TF32 more;"
        yield "of minigan, whose steps are CUDA graphs, from those of the same kernels one by one with equal precision."
        yield "*ready*: seconds until the first burst."
        yield ""
        for result in results["steps"]:
            yield from table(result, results["dry_run"])


def good(results):
    """Whether everything that ran did what it should."""
    rows = [row for result in results.get("steps", []) for row in result["rows"]]
    steps = all("failed" not in row and row["differs"] < (0.1 if row["tf32"] else 1e-3) for row in rows)
    return steps and all(results[part]["passed"] for part in ("tests", "gradients") if part in results)


def options():
    names = lambda known: lambda text: _names(text, known)
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", type=names(PARTS), default=PARTS, metavar="PARTS", help=", ".join(PARTS))
    p.add_argument("--workloads", type=names(NAMES), default=NAMES, metavar="NAMES", help=", ".join(NAMES))
    p.add_argument("--rounds", type=int, default=7, help="bursts of every contender (7)")
    p.add_argument("--seconds", type=float, default=0.3, help="length of a burst (0.3)")
    p.add_argument("--out", type=Path, help="folder of the results (benchmarks/results)")
    p.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny networks")
    args = p.parse_args()
    if args.rounds < 1 or not args.seconds > 0:
        p.error("--rounds must be 1 or more, --seconds above 0")
    if args.out is None:
        args.out = Path(tempfile.mkdtemp()) if args.dry_run else ROOT / "benchmarks" / "results"
    return args


def _names(text, known):
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(known)}")
    return names


def main():
    args = options()
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # if set, NumPy may not use this processor's kernels
        os.environ.pop(name, None)
    try:
        backend = Backend("numpy" if args.dry_run else "cupy")
    except MiniganError as error:
        reason = str(error).removesuffix("; use --backend numpy")
        print(f"gpu.py: {reason}; on a machine with a GPU: {INSTALL['cupy']}", file=sys.stderr)
        return 2
    results = {"dry_run": args.dry_run, "machine": machine(backend)}
    device = re.sub(r"\W+", "-", backend.device.removeprefix("GPU")).strip("-").lower()
    path = args.out / f"gpu-{'dry-run' if args.dry_run else device}.md"
    args.out.mkdir(parents=True, exist_ok=True)

    def save():
        path.write_text("\n".join(report(results)) + "\n")
        path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")

    if "tests" in args.only:
        results["tests"] = outcome = run(["-m", "pytest", "-m", "gpu", "-q", "-rfE"])
        outcome["passed"] = outcome["code"] == 0 and (args.dry_run or " passed" in outcome["text"])
        save()
    if "gradients" in args.only:
        how = ["numpy", "--networks", "1"] if args.dry_run else ["cupy"]
        results["gradients"] = outcome = run(["-m", "minigan", "gradcheck", "--backend", *how])
        outcome["passed"] = outcome["code"] == 0
        save()
    if "steps" in args.only:
        results["steps"] = []
        for name in args.workloads:
            results["steps"].append(time_steps(name, args))
            print(*table(results["steps"][-1], args.dry_run), sep="\n", flush=True)
            save()
    print(f"results are in {path} and {path.with_suffix('.json')}")
    return 0 if good(results) else 1


if __name__ == "__main__":
    sys.exit(main())
