"""A classifier is a density ratio: p(x)/q(x) = S/(1 - S), its logit is the log-ratio, and its AUC follows.

Source: S2, "Density-ratio estimation"; Goodfellow et al. 2014, Proposition 1. Bayes' rule with n_p rows of p and n_q
of q gives p(y = +1 | x)/p(y = -1 | x) = (n_p/n_q) p(x)/q(x), so with S = σ(s) the logit is
s(x) = log p(x)/q(x) + log n_p/n_q: unequal sample sizes only shift it, and the shift is known.
(S2 drops n_p/n_q because its sizes are equal; and its labels are ±1, while cross-entropy wants 0 and 1.)
The ratio ranks x better than any other function, so D* has the largest AUC: Φ((difference of means)/(σ√2)) here.
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import claims, losses, plots
from minigan.claims import Claim, below
from minigan.mlp import MLP, parse_layers
from minigan.optim import Adam, linear

MEANS, WIDTHS = (1.0, -0.5), (1.0, 1.0)  # of p and q
WIDER = (1.0, 1.3)  # unequal widths: a curved log-ratio


def log_ratio(x, widths):
    """log p(x)/q(x) of the two Gaussians."""
    log_p, log_q = (-(((x - m) / w) ** 2) / 2 - math.log(w) for m, w in zip(MEANS, widths, strict=True))
    return log_p - log_q


def draw(rng, sizes, widths):
    """sizes[0] rows of p above sizes[1] rows of q, (n, 1)."""
    parts = zip(MEANS, widths, sizes, strict=True)
    return np.concatenate([m + w * rng.standard_normal((n, 1)) for m, w, n in parts])


def classifier(rng, sizes, widths, steps):
    """A network whose logit separates sizes[0] rows of p from sizes[1] rows of q, by binary cross-entropy."""
    net = MLP(parse_layers("32, leaky_relu 0.2, 32, leaky_relu 0.2", 1, 1), dtype=np.float64)
    net.initialise(rng, "glorot")
    n = sum(sizes)
    optimizer, tape, grad, dlogits = Adam(net.theta), net.tape(n), net.vector(), np.empty((n, 1))
    sign = np.concatenate([np.ones((sizes[0], 1)), -np.ones((sizes[1], 1))])
    for step in range(steps):
        logits = net.forward(draw(rng, sizes, widths), tape)
        losses.logistic_gradient(logits, sign, -sign / n, dlogits)  # of the mean cross-entropy over all n rows
        net.backward(dlogits, tape, grad, need_dx=False)
        optimizer.step(net.theta, grad.flat, linear(0.01, 0, step, steps), 0.9)
    return lambda x: net.forward(x, net.tape(len(x)))[:, 0]


def r_squared(estimate, truth):
    """1 - (mean squared error)/(variance of the truth): 1 only if they are equal, not merely in line."""
    return 1 - ((estimate - truth) ** 2).mean() / truth.var()


def auc(scores_p, scores_q):
    """P(a row of p scores above a row of q): the area under the ROC curve."""
    ranks = np.concatenate([scores_p, scores_q]).argsort().argsort() + 1
    n, m = len(scores_p), len(scores_q)
    return (ranks[:n].sum() - n * (n + 1) / 2) / (n * m)


def run(seed=0, quick=False):
    """Equal and unequal sample sizes, equal and unequal widths, all on fresh rows."""
    rng = np.random.default_rng(seed)
    steps = 600 if quick else 1500
    cases = [
        ("equal sizes", (512, 512), WIDTHS),
        ("other widths", (512, 512), WIDER),
        ("nine to one", (900, 100), WIDER),
    ]
    found, drawn, grid = [], [], np.linspace(-4, 4.5, 300)[:, None]
    for name, sizes, widths in cases:
        logit, shift = classifier(rng, sizes, widths, steps), math.log(sizes[0] / sizes[1])
        x = draw(rng, (50_000, 50_000), widths)
        truth, estimate = log_ratio(x[:, 0], widths), logit(x)
        score = r_squared(estimate - shift, truth)
        drawn.append((name, sizes, widths, logit(grid), shift))
        claim = f"logit - log(n_p/n_q) against log p/q: {name}, {sizes[0]} to {sizes[1]}"
        found.append(Claim(12, claim, "R² > 0.99", f"{score:.4f}", score > 0.99))
        if shift:
            raw = r_squared(estimate, truth)
            found.append(Claim(12, "without the correction it is off", f"shift log 9 = {shift:.3f} ± 0.1; R² < 0.9",
                               f"{(estimate - truth).mean():.3f}; {raw:.3f}",
                               abs((estimate - truth).mean() - shift) < 0.1 and raw < 0.9))  # fmt: skip
            ratio = np.exp(estimate[50_000:] - shift).mean()  # E_q p/q = 1, whatever p and q are
            found.append(Claim(12, "the mean of S/(1 - S), corrected, over q is 1", "1 ± 0.05", f"{ratio:.3f}",
                               abs(ratio - 1) < 0.05))  # fmt: skip
        if name == "equal sizes":
            best = 0.5 * (1 + math.erf((MEANS[0] - MEANS[1]) / 2))  # Φ(d/(σ√2)), with Φ(t) = (1 + erf(t/√2))/2
            area = auc(estimate[:50_000], estimate[50_000:])
            found.append(below(12, "AUC of the trained D is that of the true ratio", abs(area - best), 0.01,
                               f"{best:.4f}; difference"))  # fmt: skip

    fig, axes = claims.figure(
        "A classifier's logit is the log-ratio of the densities", columns=3, width=11, sharey=True
    )
    for ax, (name, sizes, widths, logit, shift) in zip(axes, drawn, strict=True):
        ax.plot(grid, log_ratio(grid, widths), color=plots.GREY, lw=4, alpha=0.5, label="log p/q, true")
        ax.plot(grid, logit, ":" if shift else "--", color=plots.REAL, lw=1.6, label="logit of D")
        if shift:
            ax.plot(grid, logit - shift, "--", color=plots.FAKE, lw=1.6, label="logit - log(n_p/n_q)")
        x = draw(rng, (150, 150), widths)[:, 0]
        for rows, color, y in ((x[:150], plots.P_G, -8.6), (x[150:], plots.INK, -9.3)):
            ax.plot(rows, np.full(150, y), "|", color=color, ms=5, alpha=0.4)
        ax.text(-4, -8.6, "p", color=plots.P_G, va="center")
        ax.text(-4, -9.3, "q", va="center")
        ax.set(xlabel="x", ylim=(-9.8, 6), xlim=(-4.2, 4.5))
        ax.set_title(f"{name}: {sizes[0]} rows of p, {sizes[1]} of q", fontsize=9, loc="left")
        ax.legend(frameon=False, fontsize=8.5, loc="upper left")
    axes[0].set_ylabel("nats")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
