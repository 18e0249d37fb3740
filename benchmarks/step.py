"""How long one training step takes: minigan beside PyTorch, JAX and its own matrix products.

    python benchmarks/step.py                                  # everything; six to ten minutes
    python benchmarks/step.py --workloads ring --rounds 15
    python benchmarks/step.py --contenders products,minigan    # needs neither PyTorch, JAX nor MPI
    python benchmarks/step.py --profile                        # where minigan's step spends its time

Every contender lives in a process of its own, so that no thread pool meets another. All are started, compare three
steps with minigan's, warm up, and then take turns: one burst of about half a second each, round after round, in a
rotating order, while the others sleep (how well they sleep is measured and printed). All have the same cores, the
same number of threads ("minigan, mpiexec": of processes with one thread) and float32. OPENBLAS_CORETYPE and
OPENBLAS_L2_SIZE are unset for all.
"""

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import operations
from benchmarks.peers import CONTENDERS, INSTALL, NEEDS, WORKLOADS, disagreement

UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC")
SETTLE = 0.1  # seconds between two bursts, in which the threads of the last one fall asleep
AGREEMENT = (
    1e-4  # largest relative difference of three steps' weight changes from minigan's; rounding gives 1e-6 to 1e-5
)


# ------------------------------------------------------------------------------------ a contender's process


def work(pipe, contender, workload, threads):
    """Build, compare with minigan, warm up, say "ready"; then time one burst whenever asked."""
    try:
        start = time.perf_counter()
        library = NEEDS.get(contender)
        if library == "torch":
            import torch

            torch.set_num_threads(threads)
        it = CONTENDERS[contender](WORKLOADS[workload])
        differs = disagreement(it, WORKLOADS[workload]) if hasattr(it, "follow") else None
        n, seconds = 1, 0.0
        while seconds < 0.1:  # the first turns also compile
            n = 2 * it.run(n)
            before = time.perf_counter()
            done = it.run(n)
            seconds = time.perf_counter() - before
        about = {
            "ready": time.perf_counter() - start, "differs": differs, "kernels": openblas_kernels(),
            "gflop": it.flops() / 1e9 if hasattr(it, "flops") else None,
        }  # fmt: skip
        pipe.send(about)
        process_time = getattr(it, "process_time", time.process_time)
        idle_cpu, asleep = 0.0, process_time()
        while True:
            wanted = pipe.recv()
            idle_cpu += process_time() - asleep
            it.run(max(1, round(0.1 * wanted * done / seconds)))  # wake the threads, fetch the weights to the caches
            before = time.perf_counter()
            steps = it.run(max(1, round(wanted * done / seconds)))
            after = time.perf_counter()
            pipe.send({"us": (after - before) / steps * 1e6, "idle_cpu": idle_cpu})
            asleep = process_time()
    except EOFError:
        pass  # the parent is done with us
    except Exception as error:
        pipe.send(
            {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"}
        )


def profile(pipe, workload, seconds):
    pipe.send(operations.profile(WORKLOADS[workload], seconds))


def openblas_kernels():
    """The name of the processor that NumPy's OpenBLAS takes this one for, or None."""
    try:
        maps = Path("/proc/self/maps").read_text().split()
        library = ctypes.CDLL(next(path for path in maps if "openblas" in path and ".so" in path))
        for name in ("scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename"):
            if hasattr(library, name):
                function = getattr(library, name)
                function.restype = ctypes.c_char_p
                return function().decode()
    except (OSError, StopIteration):
        pass
    return None


# -------------------------------------------------------------------------------------------- the referee


class Player:
    """The parent's end of one contender."""

    def __init__(self, name, workload, threads):
        self.name, self.us, self.failed = name, [], None
        self.label = CONTENDERS[name].label
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = start(work, theirs, name, workload, threads)
        self.about = self.receive() or {}
        self.ready, self.idle_cpu = time.perf_counter(), 0.0

    def receive(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            answer = {"failed": f"its process ended with exit code {self.process.exitcode}"}
        self.failed = answer.get("failed")
        return None if self.failed else answer

    def burst(self, seconds):
        """µs per step in one burst, or None if the contender is gone."""
        time.sleep(SETTLE)
        try:
            self.pipe.send(seconds)
        except BrokenPipeError:
            pass
        answer = self.receive()
        if answer is None:
            return None
        self.us.append(answer["us"])
        self.idle_cpu = answer["idle_cpu"]
        return answer["us"]

    def close(self):
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def start(function, pipe, *arguments):
    process = multiprocessing.get_context("spawn").Process(target=function, args=(pipe, *arguments), daemon=True)
    process.start()
    pipe.close()  # ours of its end, so that we notice if it dies
    return process


def compare(workload, names, args):
    """Time all contenders on one workload; a dict for the table and for --json."""
    players = []
    try:
        for name in names:
            if sys.stderr.isatty():
                print(f"{workload}: starting {CONTENDERS[name].label:30}", end="\r", flush=True, file=sys.stderr)
            players.append(Player(name, workload, args.threads))
        began = time.perf_counter()
        for i in range(args.rounds):
            for j in range(len(players)):
                player = players[(i + j) % len(players)]
                if player.failed is None:
                    player.burst(args.seconds)
        elapsed = time.perf_counter() - began
    finally:
        for player in players:
            player.close()
    ours = next((player.us for player in players if player.name == "minigan"), [])
    result = {"workload": workload, "contenders": {}}
    for player in players:
        if player.failed:
            result["contenders"][player.name] = {"failed": player.failed}
            continue
        idle = max(elapsed - 1.1 * args.rounds * args.seconds, 1e-9)
        result["contenders"][player.name] = {
            **player.about, "us": player.us, "idle_share": player.idle_cpu / idle,
            "ratios": [a / b for a, b in zip(ours, player.us, strict=False)],
        }  # fmt: skip
    return result


def spread(values, digits):
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def lines(result):
    """The table of one workload."""
    w = WORKLOADS[result["workload"]]
    how = f"{w.update} update" + (f", R1 {w.r1:g}" if w.r1 else "")
    yield f"{w.name}: G {w.latent_dim} | {w.generator} | {w.features}; D {w.features} | {w.discriminator} | 1"
    yield f"  batch {w.batch_size}, {how}"
    yield f"  {'':16} {'µs per step (min - max)':>30} {'minigan / it (min - max)':>26} {'difference':>11} {'ready':>7}"
    for name, c in result["contenders"].items():
        if "failed" in c:
            yield f"  {CONTENDERS[name].label:16} failed: {c['failed']}"
            continue
        ratio = spread(c["ratios"], 2) if c["ratios"] else ""
        if c["differs"] is None or name == "minigan":
            agrees = f"{c['gflop'] / median(c['us']) * 1e6:.0f} GFLOP/s" if c["gflop"] else ""
        else:
            agrees = f"{c['differs']:.1e}" + ("" if c["differs"] < AGREEMENT else " !")
        yield f"  {CONTENDERS[name].label:16} {spread(c['us'], 0):>30} {ratio:>26} {agrees:>11} {c['ready']:6.1f}s"
    timed = [c for c in result["contenders"].values() if "failed" not in c]
    if any((c["differs"] or 0) >= AGREEMENT for c in timed):
        yield "  ! does not do the same work: three steps from equal weights on equal draws end elsewhere"
    if timed:
        idle = max(c["idle_share"] for c in timed)
        yield f"  while it was not its turn, no contender used more than {idle:.1%} of a core"


def machine(args):
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    packages = {}
    for name in ("numpy", "torch", "jax", "jaxlib", "mpi4py", "mpich"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return {
        "processor": model, "cores": os.cpu_count(), "threads": args.threads, "system": platform.platform(),
        "python": platform.python_version(), "packages": packages,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    }  # fmt: skip


def options():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = lambda known: lambda text: _names(text, known)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=names(WORKLOADS), default=list(WORKLOADS), metavar="NAMES",
                        help="with commas between them: " + ", ".join(WORKLOADS))  # fmt: skip
    parser.add_argument("--contenders", type=names(CONTENDERS), default=list(CONTENDERS), metavar="NAMES",
                        help="with commas between them: " + ", ".join(CONTENDERS))  # fmt: skip
    parser.add_argument("--rounds", type=int, default=9, help="bursts of every contender (9)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a burst (0.5)")
    parser.add_argument("--threads", type=int, default=cores, help=f"of every contender ({cores})")
    parser.add_argument("--json", metavar="FILE", help="also write every number there")
    parser.add_argument("--profile", action="store_true", help="operation by operation, minigan only")
    args = parser.parse_args()
    if args.rounds < 1 or not args.seconds > 0 or not 1 <= args.threads <= cores:
        parser.error(f"--rounds must be 1 or more, --seconds above 0, --threads from 1 to {cores}")
    return args


def _names(text, known):
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(known)}")
    return names


def main():
    args = options()
    for name in UNSET:
        os.environ.pop(name, None)
    for name in THREADS:
        os.environ[name] = str(args.threads)
    if hasattr(os, "sched_setaffinity"):  # whatever a library thinks of its thread options, it gets these cores only
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    here = machine(args)
    print(
        f"{here['processor']}, {args.threads} of {here['cores']} cores and as many threads, float32, {here['system']}"
    )
    print(f"Python {here['python']}, " + ", ".join(f"{k} {v}" for k, v in here["packages"].items()))
    print(f"{' and '.join(UNSET)} are unset for all")
    if here["load"] > 0.3:
        print(f"this machine is not idle (load average {here['load']:.1f}): do not trust these times")
    print(flush=True)
    here["results"] = results = []
    if args.profile:
        for workload in args.workloads:
            ours, theirs = multiprocessing.Pipe()
            process = start(profile, theirs, workload, 8 * args.seconds)
            results.append({"workload": workload, **ours.recv()})
            process.join()
            print(workload, *operations.table(results[-1]), "", sep="\n", flush=True)
    else:
        missing = {library for library in INSTALL if not importlib.util.find_spec(library)}
        names = [name for name in args.contenders if NEEDS.get(name) not in missing]
        left_out = [name for name in args.contenders if name not in names]
        if left_out:
            needed = sorted({INSTALL[NEEDS[name]] for name in left_out})
            print(f"{', '.join(CONTENDERS[name].label for name in left_out)} left out; pip install {' '.join(needed)}")
        for workload in args.workloads:
            results.append(compare(workload, names, args))
            if len(results) == 1:
                kernels = [c.get("kernels") for c in results[0]["contenders"].values()]
                print(f"NumPy's OpenBLAS uses its kernels for {next(filter(None, kernels), 'an unknown processor')}\n")
            print(*lines(results[-1]), "", sep="\n", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(here, indent=1))


if __name__ == "__main__":
    main()
