"""At a fixed rate of G k = 1 need not be the cheapest: five steps of a faster D for each of G arrive sooner.

Source: Goodfellow et al. 2014, conclusion 5: "training could be accelerated greatly by devising better methods for
coordinating G and D or determining better distributions to sample z from during training"; its section 4 has "k = 1,
the least expensive option". Data: N(1.5, 0.7²); G's rate is 0.05. With 0.02, and ratio 10, k = 1 needs less than here:
500 to 800 evaluations, seeds 0 to 4. Cost is counted in gradient evaluations, k of D and one of G for each step, until
the Jensen-Shannon divergence of 4,000 samples, a mean of three looks, 100 evaluations apart, is below LIMIT nats, some
15 times a perfect sampler's (metrics.jensen_shannon_1d). A cell is the median of RUNS runs; one that is not there after
MOST evaluations, or no longer finite, is never (inf). The claims compare only medians that differed by a factor of 1.2
or more. Which prior of z is the fastest changes with the seed.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, metrics, plots
from minigan.claims import Claim
from minigan.options import PRIORS

DATA, LIMIT, MOST, LOOK, RUNS = load("gaussian"), 0.02, 2000, 100, 3
KS, RATIOS = (1, 2, 5), (0.1, 1, 3, 10)
BEST, LONGER = dict(k=5, ratio=3), 8000  # where the priors are compared, and for how long


def evaluations(seed, k=1, ratio=1.0, prior="normal", most=MOST):
    """Gradient evaluations until the JSD is below LIMIT; infinity if that is never."""
    gan = GAN(generator="32, relu, 32, relu", discriminator="32, leaky_relu 0.2, 32, leaky_relu 0.2", latent_dim=4,
              lr=0.05, lr_D=0.05 * ratio, lr_end=1.0, r1=0.02, average=0.0, k=k, prior=prior,
              seed=seed).build(DATA)  # fmt: skip
    looks, spent = [], 0
    while spent < most:
        gan.train_step()
        spent += k + 1
        if spent // LOOK > len(looks):
            x = gan.sample(4000, seed=1)
            if not np.isfinite(x).all():
                return np.inf
            looks.append(metrics.jensen_shannon_1d(DATA.density, x, -4, 7))
            if len(looks) >= 3 and np.mean(looks[-3:]) < LIMIT:
                return spent
    return np.inf


def median(seed, runs, **options):
    """The middle one of so many runs, infinity being the longest."""
    return float(np.median([evaluations(100 * seed + i, **options) for i in range(runs)]))


def run(seed=0, quick=False):
    """The map of k against the ratio of learning rates, and the priors of z side by side."""
    ks, runs, shown = ((1, 5), 1, PRIORS[:1]) if quick else (KS, RUNS, PRIORS)
    cells = {(k, ratio): median(seed, runs, k=k, ratio=ratio) for k in ks for ratio in RATIOS}
    priors = {prior: median(seed, runs, prior=prior, most=LONGER, **BEST) for prior in shown}
    best = {k: min(cells[k, ratio] for ratio in RATIOS) for k in ks}
    found = [
        Claim(24, "at this rate of G, each at its best ratio, k = 5 costs fewer evaluations than k = 1", "fewer",
              f"{best[5]:,.0f} against {best[1]:,.0f}", best[5] < best[1]),
        Claim(24, "D too slow: k = 1 and k = 5, ratio 0.1 costs more than ratio 1", "more, or never (inf)",
              ", ".join(f"{cells[k, 0.1]:,.0f} against {cells[k, 1]:,.0f}" for k in (1, 5)),
              all(cells[k, 0.1] > cells[k, 1] for k in (1, 5))),
        Claim(24, "D too fast: k = 1, ratio 10 never arrives; with k = 5 it does", f"inf, < {MOST:,}",
              f"{cells[1, 10]:,.0f}, {cells[5, 10]:,.0f}", np.isinf(cells[1, 10]) and cells[5, 10] < MOST),
        Claim(24, "the prior of z (a report): the fastest arrives in the time of the map", f"< {MOST:,}",
              ", ".join(f"{prior} {spent:,.0f}" for prior, spent in priors.items()), min(priors.values()) < MOST),
    ]  # fmt: skip

    title = "One rate of G: a D too slow or too fast for its k never gets it there; with k = 5 a fast D is the cheapest"
    fig, (left, right) = claims.figure(title, columns=2, width=11, width_ratios=[1.3, 1])
    table = np.array([[cells[k, ratio] for ratio in RATIOS] for k in ks])
    left.imshow(np.where(np.isinf(table), np.nan, table), cmap="Greens_r", vmin=0, vmax=1.3 * MOST, aspect="auto")
    left.set_facecolor("#eeeeee")  # of the cells without a number
    for (i, j), spent in np.ndenumerate(table):
        text = f"{spent:,.0f}\n{spent / (ks[i] + 1):,.0f} steps" if np.isfinite(spent) else f"not in {MOST:,}"
        left.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if spent < 800 else plots.INK)
    left.set_xticks(range(len(RATIOS)), [f"{ratio:g}" for ratio in RATIOS])
    left.set_yticks(range(len(ks)), [str(k) for k in ks])
    left.set(xlabel="learning rate of D over that of G, 0.05", ylabel="k: steps of D for each of G")
    left.set_title(f"gradient evaluations until the JSD is below {LIMIT} nats", fontsize=9, loc="left")
    for i, spent in enumerate(priors.values()):
        arrives = np.isfinite(spent)
        bar = right.bar(i, spent if arrives else LONGER, 0.6, color=plots.P_G if arrives else "#eeeeee")
        right.bar_label(bar, [f"{spent:,.0f}" if arrives else f"not in {LONGER:,}"], padding=2, fontsize=9)
    right.set_xticks(range(len(priors)), priors)
    right.set(xlabel="prior of z (k = 5, ratio 3)", ylabel="gradient evaluations")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
