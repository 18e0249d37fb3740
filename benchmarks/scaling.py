"""How a step's cost and memory grow, and what the two slow measures cost beside their matrix products.

    python benchmarks/scaling.py                  # all parts, some three minutes
    python benchmarks/scaling.py memory measures  # some of them

batch     µs per row of a step, for growing minibatches: level where the cost is linear, higher where the batch is
          too small to pay for what each step costs anyway (SGD touches every weight once, whatever the batch)
width     µs per million weights, for growing networks
memory    the largest sum of all arrays while training, by tracemalloc, beside its bound: the data, four times
          the weights (themselves, gradient, velocity, and the average, which D has not) and the tapes, R1's among them
measures  Parzen window and precision / recall at N = 10,000 rows of 784, and the most memory they take

The sizes take turns, --rounds times; medians. OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are unset.
"""

import argparse
import os
import sys
import time
import tracemalloc
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)  # before NumPy is imported

import numpy as np  # noqa: E402

from minigan import GAN, load, metrics  # noqa: E402

MNIST = (60_000, 28, 28)
BATCHES = (25, 50, 100, 200, 400, 800)
WIDTHS = (128, 256, 512, 1024, 2048)
N = 10_000  # rows of the measures


def noise(rows=1000):
    """Images of no content."""
    return np.random.default_rng(0).random((rows, *MNIST[1:]), np.float32)


def gan(X, width=512, batch_size=100):
    """A GAN like the recipe mnist's, on X."""
    G, D = f"{width}, relu, {width}, relu", f"{width}, leaky_relu 0.2, {width}, leaky_relu 0.2"
    options = {"latent_dim": 100, "r1": 0.1, "lr": 1e-3, "backend": "numpy"}
    return GAN(generator=G, discriminator=D, batch_size=batch_size, **options).build(X)


def weights(it):
    return it.G.theta.size + it.D.theta.size


def in_turns(jobs, rounds):
    """Median seconds of each job, a function; every round calls all of them once."""
    seconds = [[] for _ in jobs]
    for turn in range(rounds + 1):
        for i, job in enumerate(jobs):
            start = time.perf_counter()
            job()
            if turn:  # the first one warms up
                seconds[i].append(time.perf_counter() - start)
    return [median(s) for s in seconds]


def step_times(gans, rounds):
    """Median seconds of one step of each, in bursts of about as much work."""
    repeats = [max(1, round(3e10 / (weights(it) * it.batch_size * 20))) for it in gans]

    def burst(it, n):
        return lambda: [it.train_step() for _ in range(n)]

    seconds = in_turns([burst(it, n) for it, n in zip(gans, repeats, strict=True)], rounds)
    return [s / n for s, n in zip(seconds, repeats, strict=True)]


def batch(rounds):
    """Cost against the minibatch."""
    gans = [gan(noise(), batch_size=m) for m in BATCHES]
    print(f"\nbatch: {weights(gans[0]):,} weights, 512 units a layer, R1 on")
    print(f"{'rows':>10}{'µs a step':>12}{'µs a row':>12}")
    for m, s in zip(BATCHES, step_times(gans, rounds), strict=True):
        print(f"{m:10}{s * 1e6:12,.0f}{s * 1e6 / m:12.1f}")


def width(rounds):
    """Cost against the number of weights."""
    gans = [gan(noise(), width=w) for w in WIDTHS]
    print("\nwidth: batch 100, R1 on")
    print(f"{'units':>10}{'weights':>12}{'µs a step':>12}{'µs a million weights':>24}")
    for w, it, s in zip(WIDTHS, gans, step_times(gans, rounds), strict=True):
        print(f"{w:10}{weights(it):12,}{s * 1e6:12,.0f}{s * 1e12 / weights(it):24,.0f}")


def memory_of(x):
    """{id: bytes} of the memory that the arrays of Tapes, or of the buffers of layers, lie in."""
    if isinstance(x, np.ndarray):
        owner = x if x.base is None else x.base
        return {id(owner): owner.nbytes}
    parts = x if isinstance(x, list) else vars(x).values()
    return {key: size for part in parts for key, size in memory_of(part).items()}


def memory(rounds):
    """Peak of all arrays while training, against the bound."""
    X = noise(MNIST[0])  # the caller's own, of which a Dataset keeps a copy
    tracemalloc.start()
    it = gan(X)
    for _ in range(20):
        it.train_step()
    it.report()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    parts = {
        "the data": it.data.X.nbytes,
        "4 x the weights": 4 * 4 * weights(it),
        "the tapes": sum(memory_of([it.tape_G, it.tape_DG, it.tape_D, it.tape_D_real]).values()),
    }
    print("\nmemory: recipe mnist's networks, batch 100, R1 on, MB")
    for name, size in [*parts.items(), ("their sum", sum(parts.values())), ("largest, measured", peak)]:
        print(f"{name:>20}{size / 1e6:10.1f}")


def measures(rounds):
    """Parzen window and precision / recall beside the matrix products that they cannot do without."""
    rng = np.random.default_rng(0)
    digits = np.pad(np.kron(load("digits").X.reshape(-1, 8, 8), np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    digits = digits.reshape(-1, 784).astype(np.float32)
    some = lambda: digits[rng.integers(0, len(digits), N)] + 0.1 * rng.standard_normal((N, 784), np.float32)
    fake, real, test = (some() for _ in range(3))
    uniform = [rng.random((N, 784), np.float32) for _ in range(3)]  # without any structure: all sigmas see all rows
    out, few = np.empty((1000, N), np.float32), real[:1000]

    def products(pairs):
        def run():
            for a, b in pairs:
                for i in range(0, len(a), 1000):
                    np.matmul(a[i : i + 1000], b.T, out=out)

        return run

    jobs = {
        "Parzen window": (
            lambda: metrics.parzen_log_likelihood(fake, few, test), products([(few, fake), (test, fake)]),
        ),
        "Parzen window of uniform noise": (
            lambda: metrics.parzen_log_likelihood(uniform[0], uniform[1][:1000], uniform[2]),
            products([(few, fake), (test, fake)]),
        ),
        "precision, recall, density, coverage": (
            lambda: metrics.precision_recall_density_coverage(real, fake),
            products([(real, real), (fake, fake), (real, fake)]),
        ),
    }  # fmt: skip
    print(f"\nmeasures: N = {N:,} rows of 784 pixels, digits with noise")
    print(f"{'':>38}{'seconds':>10}{'products':>10}{'ratio':>8}{'MB above its input':>20}")
    for name, (measure, alone) in jobs.items():
        tracemalloc.start()
        measure()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        s, p = in_turns([measure, alone], max(3, rounds // 2))
        print(f"{name:>38}{s:10.2f}{p:10.2f}{s / p:8.2f}{peak / 1e6:20.0f}")


PARTS = {part.__name__: part for part in (batch, width, memory, measures)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    p.add_argument("--rounds", type=int, default=9, help="of every size (9)")
    args = p.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        p.error(f"'{unknown[0]}' is no part; choose from {', '.join(PARTS)}")
    for part in args.parts or PARTS:
        PARTS[part](args.rounds)


if __name__ == "__main__":
    main()
