"""Training D to completion in the inner loop costs a thousand times as much, and D learns a finite sample by heart.

Source: Goodfellow et al. 2014, section 3: "Optimizing D to completion in the inner loop of training is
computationally prohibitive, and on finite datasets would result in overfitting"; S3, problem 1. Data and samples
are two Gaussians in 16 dimensions, so the best value C(G) = -log 4 + 2 JSD is known. G stands still while D takes
k steps on n = 500 real rows, with fresh samples of G each time. On its own rows V̂ climbs far above C(G), where no D
can honestly be; on fresh rows it sinks below that of a coin.
"""

import sys
import time
from collections import deque
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, losses, metrics, plots
from minigan.claims import Claim, below
from minigan.data import Dataset

DIM, ROWS, CONVERGED = 16, 500, 4000  # CONVERGED: steps after which D answers its own rows almost without error
SHIFT = np.float32(DIM**-0.5)  # in every coordinate: the means of p_data and p_g are 1 apart
WATCHED = (0, 1, 3, 7, 20, 50, 100, 200, 400, 800, 1500, 2500, CONVERGED)


def draw(rng, n):
    """n rows (n, DIM) of p_data = N(SHIFT, I); p_g is N(0, I)."""
    return rng.standard_normal((n, DIM), dtype=np.float32) + SHIFT


def best_value():
    """C(G), by quadrature along the line through both means: across it the two densities agree."""
    normal = lambda mean: lambda x: np.exp(-((x - mean) ** 2) / 2) / np.sqrt(2 * np.pi)
    return 2 * metrics.jensen_shannon_1d(normal(1), normal(0), -9, 10) - np.log(4)


def inner_loop(data, rng, seed):
    """Steps, V̂ on D's own rows, V̂ on fresh rows, and seconds spent in D's steps, at each step of WATCHED.

    Its own rows are the data's or, of a stream, those of its last 50 minibatches.
    """
    gan = GAN(generator="", discriminator="64, leaky_relu 0.2, 64, leaky_relu 0.2", latent_dim=DIM, lr=0.1, lr_end=1.0,
              r1=0.0, average=0.0, batch_size=100, seed=seed).build(data)  # fmt: skip
    W, b = gan.G.params.layers[0]
    W[...], b[...] = np.eye(DIM), 0
    fresh, fake = draw(rng, 20_000), rng.standard_normal((20_000, DIM), dtype=np.float32)
    rows, seconds, minibatches = [], 0.0, deque([draw(rng, 100)], maxlen=50)  # before the first step any will do
    for step in range(CONVERGED + 1):
        if step in WATCHED:
            own = data.X if data.X is not None else np.concatenate(minibatches)
            logits = [gan._in_blocks(gan.D, x) for x in (own, fresh, fake)]
            rows.append((step, losses.value(logits[0], logits[2]), losses.value(logits[1], logits[2]), seconds))
        start = time.perf_counter()
        gan.discriminator_step()
        seconds += time.perf_counter() - start
        minibatches.append(gan.tape_D.x[: gan.m].copy())
    return np.array(rows).T


def run(seed=0, quick=False):
    """500 rows, and for comparison a stream that never repeats itself."""
    rng, C = np.random.default_rng(seed), best_value()
    sample = draw(rng, ROWS)
    step, own, fresh, seconds = inner_loop(Dataset("sample", DIM, X=sample), rng, seed)
    stream = Dataset("stream", DIM, draw=lambda n, rng, xp: rng.standard_normal((n, DIM), dtype=np.float32) + SHIFT)
    _, own_2, fresh_2, _ = inner_loop(stream, rng, seed)
    at = {k: WATCHED.index(k) for k in (1, 20, CONVERGED)}
    gap = {k: float(own[i] - fresh[i]) for k, i in at.items()}
    gap_2 = float(np.abs(own_2 - fresh_2)[1:].max())
    times = [float(seconds[i]) for i in at.values()]
    found = [
        Claim(11, f"gap of V̂, own rows against fresh: k = 1, 20, {CONVERGED:,}", "< 0.1, < 0.1, > 1 nat",
              ", ".join(f"{value:.3f}" for value in gap.values()),
              max(abs(gap[1]), abs(gap[20])) < 0.1 and gap[CONVERGED] > 1),
        Claim(11, "at convergence V̂ on its own rows is above every honest D's", f"> C(G) = {C:.4f}, by > 0.5",
              f"{own[-1]:.3f}", own[-1] > C + 0.5),
        Claim(11, "on fresh rows it is worse than a coin, and than k = 20", f"< -log 4 < {fresh[at[20]]:.3f}",
              f"{fresh[-1]:.3f}", fresh[-1] < -np.log(4) < fresh[at[20]]),
        below(11, "a stream: V̂ on the rows it was trained on last, less V̂ on fresh ones", gap_2, 0.1, "largest gap"),
        Claim(11, f"wall time of the inner loop: k = 1, 20, {CONVERGED:,}", "the last > 100 times the first",
              ", ".join(f"{1e3 * s:.2g} ms" for s in times), times[2] > 100 * times[0]),
    ]  # fmt: skip

    fig, (left, right) = claims.figure(
        "On 500 rows, D trained to completion learns the rows and not the distribution", columns=2, width=10
    )
    lowest = min(map(np.min, (own, fresh, own_2, fresh_2)))
    for ax, (a, b), what in (
        (left, (own, fresh), "its own 500 rows"),
        (right, (own_2, fresh_2), "its last 5,000 rows"),
    ):
        ax.axhline(C, color=plots.INK, lw=1, ls="--")
        ax.axhline(-np.log(4), color=plots.GREY, lw=0.8, ls=":")
        ax.text(0.4, C + 0.1, "C(G): the best value of any D", fontsize=8.5, va="bottom")
        ax.text(0.4, -np.log(4) - 0.25, "-log 4: D = ½, a coin", fontsize=8.5, color=plots.GREY, va="top")
        ax.plot(np.maximum(step, 0.5), a, "o-", ms=3, color=plots.FAKE, label=f"V̂ on {what}")
        ax.plot(np.maximum(step, 0.5), b, "o-", ms=3, color=plots.REAL, label="V̂ on fresh rows")
        ax.set(xscale="log", xlabel="k: steps of D while G stands still (first point: 0)", ylim=(lowest - 0.3, 0.3))
        ax.legend(frameon=False, fontsize=9, loc="lower left")
    left.set_ylabel("V̂, nats")
    left.set_title(
        f"500 real rows; k = 20: {1e3 * times[1]:.0f} ms, k = {CONVERGED:,}: {times[2]:.1f} s", fontsize=9, loc="left"
    )
    right.set_title("new real rows at each step: no gap", fontsize=9, loc="left")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
