"""Where there is no p(x), samples can still be scored, by a Parzen window; but the score rewards blur.

Source: S3, "there is no explicit representation of p_g", and Table 1 of Goodfellow et al. 2014, after Breuleux, Bengio
and Vincent 2011: log p̂(x) = log (1/M) Σᵢ N(x; xᵢ, σ² I) over M samples xᵢ, σ the best on validation rows. In few
dimensions it comes near the truth. In many it does not, and it prefers the mean of a digit and its neighbours, which
no one would take for a better digit, to real digits (Theis, van den Oord and Bethge 2016); and of a GAN's samples it
prefers the typical ones, G(0.6 z), to those of the whole prior. The paper's MNIST number, 225, is looked for by
``benchmarks/published.py mnist-paper``, which takes hours: docs/results.md.
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, metrics, plots, recipes
from minigan.claims import Claim
from minigan.data import from_array

SIGMAS = np.logspace(-1.5, 0.5, 25)
DIGITS = recipes.load("digits") | {"backend": "numpy"}
del DIGITS["data"]


def by_the_formula(x, samples, sigma):
    """The mean over x of log p̂(x), in float64 and without any trick."""
    d2 = np.square(x.astype(np.float64)[:, None] - samples.astype(np.float64)[None]).sum(2)
    density = np.exp(-d2 / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) ** x.shape[1]
    return np.log(density.mean(1)).mean()


def blurred(x, neighbours):
    """Each row's mean with its nearest rows, so many of them together."""
    d2 = np.square(x[:, None] - x[None]).sum(2)
    return x[np.argsort(d2, axis=1)[:, :neighbours]].mean(1)


def run(seed=0, quick=False):
    """The estimator, its error in a plane, and what it prefers in 64 dimensions."""
    rng = np.random.default_rng(seed)
    x, samples = rng.standard_normal((50, 3)), rng.standard_normal((200, 3))
    ours = metrics.parzen_log_likelihood(samples, x, x, [0.4])["mean"]
    error = abs(ours / by_the_formula(x, samples, 0.4) - 1)

    sizes = [10_000] if quick else [100, 300, 1000, 3000, 10_000]
    draw = lambda n: rng.standard_normal((n, 2)).astype(np.float32)
    validation, test = draw(300), draw(2000 if quick else 10_000)
    plane = [metrics.parzen_log_likelihood(draw(n), validation, test, SIGMAS)["mean"] for n in sizes]
    truth = float(-np.square(test).sum(1).mean() / 2 - math.log(2 * math.pi))

    X = load("digits").X[rng.permutation(1797)]
    real, validation, test = X[:1000], X[1000:1400], X[1400:]
    means = {k: blurred(real, k) for k in ((1, 5) if quick else (1, 2, 3, 5, 10))}
    scores = {k: metrics.parzen_log_likelihood(fake, validation, test, SIGMAS)["mean"] for k, fake in means.items()}
    best = max(scores, key=scores.get)
    prdc = {k: metrics.precision_recall_density_coverage(test, fake[: len(test)]) for k, fake in means.items()}

    gan = GAN(**DIGITS | {"steps": 1500 if quick else 4000, "seed": seed}).fit(from_array(real, image_shape=(8, 8)))
    narrow = (0.6, 1.0) if quick else (0.4, 0.6, 0.8, 1.0)
    typical = {T: gan.sample(1000, seed, truncation=T) for T in narrow}
    parzen = {T: metrics.parzen_log_likelihood(fake, validation, test, SIGMAS)["mean"] for T, fake in typical.items()}
    recall = {
        T: metrics.precision_recall_density_coverage(test, fake[: len(test)])["recall"] for T, fake in typical.items()
    }
    found = [
        claims.below(17, "the estimator is its formula, summed in float64", error, 1e-6, "relative error"),
        Claim(17, "in two dimensions 10,000 samples give the true mean of log p", f"{truth:.3f} ± 0.05 nats",
              f"{plane[-1]:.3f}", abs(plane[-1] - truth) < 0.05),
        Claim(17, "in 64 dimensions it rewards blur", "means of 2 to 10 digits score above real digits",
              f"means of {best}: {scores[best]:.1f}, real {scores[1]:.1f} nats",
              all(score > scores[1] for k, score in scores.items() if k > 1)),
        Claim(17, "so does coverage; recall does not", "means against real digits: coverage not below, recall below",
              "{:.2f}, real {:.2f}; {:.2f}, real {:.2f}".format(
                  *(prdc[k][name] for name in ("coverage", "recall") for k in (best, 1))),
              prdc[best]["coverage"] >= prdc[1]["coverage"] and prdc[best]["recall"] < prdc[1]["recall"]),
        Claim(17, "and it rewards a narrower prior, G(0.6 z)", "score above that of G(z), recall below",
              f"score {parzen[0.6]:.1f} against {parzen[1.0]:.1f}, recall {recall[0.6]:.2f} against {recall[1.0]:.2f}",
              parzen[0.6] > parzen[1.0] and recall[0.6] < recall[1.0]),
    ]  # fmt: skip

    title = "A Parzen window comes near log p in the plane; among images it prefers blurred digits, and typical ones"
    fig, axes = claims.figure(title, columns=5, width=16, height=3.4)
    axes[0].semilogx(sizes, plane, "o-", color=plots.P_G)
    axes[0].axhline(truth, color=plots.INK, lw=1, ls="--")
    axes[0].annotate("true", (100, truth), (0, 3), textcoords="offset points", fontsize=8.5)
    axes[0].set(xlabel="samples M of N(0, I), 2 dimensions", ylabel="mean log p̂ of fresh rows, nats")
    axes[1].plot(scores.keys(), scores.values(), "o-", color=plots.FAKE)
    axes[1].set(xlabel="digits averaged (1: real ones)", ylabel="Parzen score of held-out digits, nats")
    axes[2].plot(parzen.keys(), parzen.values(), "o-", color=plots.FAKE)
    for T, score in parzen.items():
        axes[2].annotate(f"recall {recall[T]:.2f}", (T, score), (6, 5), textcoords="offset points", fontsize=8)
    axes[2].margins(0.25, 0.15)
    axes[2].set(xlabel="T, of a GAN's samples G(Tz)", ylabel="Parzen score of held-out digits, nats")
    for ax, k, text in ((axes[3], 1, "real digits"), (axes[4], best, f"means of {best} neighbours")):
        ax.imshow(plots._image_grid(load("digits"), means[k][:49], 600, most=49), cmap="gray")
        ax.set(xticks=[], yticks=[], xlabel=f"{text}: score {scores[k]:.1f}")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
