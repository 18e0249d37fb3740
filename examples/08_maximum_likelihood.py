"""Maximum likelihood is minimum KL; the mixture of Gaussians, GAN's predecessor, reaches it, and where it falls short.

Source: S1, section 1.2; Dempster, Laird and Rubin 1977 for EM. As E_data log p(x; θ) = -KL(p_data ‖ p) - H(p_data)
and the entropy H knows nothing of θ, the θ of the largest mean log-likelihood is that of the smallest KL. (S1 writes
-argmax KL in between; it is argmax -KL.) A mixture can be fitted that way by EM, whose likelihood never falls. Its
limits: somebody must choose how many Gaussians, more of them learn the training rows by heart, and by the score that
a GAN gets on rows that neither has seen, its digits are worse, as S1 says ("poor quality").
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, metrics, plots
from minigan.claims import Claim, below
from minigan.data import from_array
from minigan.mixture import GaussianMixture

FLOOR = 1e-3  # of a mixture's variances on pixels in [0, 1]: a thirtieth of their range
GAN_OPTIONS = dict(generator="192, relu, 192, relu", discriminator="192, leaky_relu 0.2, 192, leaky_relu 0.2",
                   lr=0.1, r1=0.03, init_D="he", backend="numpy")  # fmt: skip


def on_a_grid(seed, m=100_000):
    """Mean log-likelihood of m samples, its expectation and KL for N(μ, σ²) over a grid of (μ, σ), as a dict."""
    data = load("gaussians")  # three Gaussians: no member of the family fits
    x = data.real_samples(m, seed)[:, 0].astype(np.float64)
    mu, sigma = np.linspace(-1, 1, 21)[:, None], np.linspace(1.06, 2.26, 25)
    grid, width = np.linspace(-12, 12, 24_001, retstep=True)
    p = data.density(grid)
    entropy = -width * (p * np.log(np.maximum(p, 1e-300))).sum()
    log_q = lambda x: -(((x - mu[..., None]) / sigma[:, None]) ** 2 + np.log(2 * math.pi * sigma[:, None] ** 2)) / 2
    kl = width * (p * (np.log(np.maximum(p, 1e-300)) - log_q(grid))).sum(-1)
    first, second = 0.0, 8 / 3 + 0.3**2  # E x and E x² of the data
    expected = -(second - 2 * mu * first + mu**2) / (2 * sigma**2) - np.log(2 * math.pi * sigma**2) / 2
    mean = -((x**2).mean() - 2 * mu * x.mean() + mu**2) / (2 * sigma**2) - np.log(2 * math.pi * sigma**2) / 2
    return dict(mu=mu[:, 0], sigma=sigma, kl=kl, entropy=entropy, expected=expected, mean=mean)


def digits(seed):
    """Rows to train on (1,000), to choose with (200) and to score with (597)."""
    X = load("digits").X[np.random.default_rng(seed).permutation(1797)]
    return X[:1000], X[1000:1200], X[1200:]


def run(seed=0, quick=False):
    """The grid, EM with more and more components, and the score beside a GAN's."""
    g = on_a_grid(seed)
    best_kl = np.unravel_index(g["kl"].argmin(), g["kl"].shape)
    best_mean = np.unravel_index(g["mean"].argmax(), g["mean"].shape)
    point = lambda i: f"μ {g['mu'][i[0]]:.2f}, σ {g['sigma'][i[1]]:.2f}"

    train, choose, test = digits(seed)
    many = (1, 5, 20) if quick else (1, 2, 3, 5, 8, 12, 20, 30)
    fits = [GaussianMixture(K, FLOOR, seed).fit(train) for K in many]
    gains = np.concatenate([np.diff(m.history) for m in fits])
    held_out = [m.log_density(choose).mean() for m in fits]
    best = int(np.argmax(held_out))

    found = [
        below(14, "E log p(x; θ) = -KL - H at every θ of a grid", np.abs(g["expected"] + g["kl"] + g["entropy"]).max(),
              1e-9),
        Claim(14, "argmax of the mean log-likelihood of 100,000 samples = argmin KL", point(best_kl), point(best_mean),
              best_kl == best_mean),
        Claim(14, "EM: the log-likelihood never falls", "least gain > -1e-12 nats: 0 to rounding",
              f"{gains.min():.1e} nats in {len(gains)} steps", gains.min() > -1e-12),
        Claim(14, "limit: more Gaussians fit the rows, not the digits",
              f"K = {many[-1]}: higher on its rows, lower on held-out ones, than K = {many[best]}",
              f"{fits[-1].history[-1]:.1f} > {fits[best].history[-1]:.1f}; {held_out[-1]:.1f} < {held_out[best]:.1f}",
              fits[-1].history[-1] > fits[best].history[-1] and held_out[-1] < held_out[best]),
    ]  # fmt: skip
    scores = {}
    fakes = {"mixture": np.clip(fits[best].sample(len(test), seed), 0, 1)}  # pixels outside [0, 1] would only hurt it
    if not quick:
        gan = GAN(**GAN_OPTIONS, steps=8000, seed=seed).fit(from_array(train, image_shape=(8, 8)))
        fakes["GAN"] = gan.sample(len(test), seed)
        scores = {name: metrics.precision_recall_density_coverage(test, x) for name, x in fakes.items()}
        show = lambda name: ", ".join(f"{k} {scores[name][k]:.2f}" for k in ("precision", "coverage"))
        worse = all(scores["mixture"][k] < scores["GAN"][k] for k in ("precision", "coverage"))
        found.append(Claim(14, "limit: the mixture's digits are poorer than a GAN's, on held-out rows",
                           f"below {show('GAN')}", show("mixture"), worse))  # fmt: skip
    captions = {name: f"digits of the {name}" + (f"\n{show(name)}" if scores else "") for name in fakes}
    return found, draw(g, best_kl, many, fits, held_out, best, fakes, captions)


def draw(g, best_kl, many, fits, held_out, best, fakes, captions):
    """The grid, EM's history, the choice of K, and samples."""
    title = "Maximum likelihood is minimum KL; EM climbs it, never down; too many Gaussians fit the training rows alone"
    fig, axes = claims.figure(title, columns=3 + len(fakes), width=15, height=3.5)
    row, ax = best_kl[0], axes[0]
    ax.plot(g["sigma"], g["mean"][row], color=plots.REAL, lw=4, alpha=0.4)
    ax.plot(g["sigma"], -g["kl"][row] - g["entropy"], color=plots.INK, lw=1.2, ls="--")
    ax.axvline(g["sigma"][best_kl[1]], color=plots.GREY, lw=0.8, ls=":")
    ax.text(1.55, -2.12, "blue: mean log-likelihood\nof 100,000 samples", color=plots.REAL, fontsize=9)
    ax.text(1.55, -2.16, "dashed: -KL - entropy", color=plots.INK, fontsize=9)
    ax.set(xlabel="σ of N(0, σ²), fitted to three Gaussians", ylabel="nats", title="both are largest at the same σ")
    ax = axes[1]
    for m in fits[1:]:
        ax.plot(m.history[:25], color=plots.P_G, lw=1.5)
        ax.text(min(len(m.history), 25), m.history[:25][-1], f"K = {m.components}", fontsize=8.5, va="center")
    ax.set(xlabel="steps of EM, K Gaussians on 1,000 digits", ylabel="mean log-likelihood, nats", xlim=(0, 30),
           title="never down")  # fmt: skip
    ax = axes[2]
    ax.plot(many, [m.history[-1] for m in fits], color=plots.REAL, lw=2, marker="o", ms=4)
    ax.plot(many, held_out, color=plots.FAKE, lw=2, marker="o", ms=4)
    ax.text(many[-1], fits[-1].history[-1] + 2, "training rows", color=plots.REAL, fontsize=9, ha="right")
    ax.text(many[-1] * 0.85, held_out[-1], "held-out rows", color=plots.FAKE, fontsize=9, ha="right")
    ax.set(xlabel="Gaussians K, on the digits", ylabel="mean log-likelihood, nats",
           title=f"chosen by held-out rows: K = {many[best]}")  # fmt: skip
    for ax, (name, x) in zip(axes[3:], fakes.items(), strict=True):
        ax.imshow(plots._image_grid(load("digits"), x, 600, most=49), cmap="gray")
        ax.set(xlabel=captions[name], xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax in axes[:3]:
        ax.title.set(fontsize=9.5, color=plots.GREY)
    return fig


if __name__ == "__main__":
    claims.main(run)
