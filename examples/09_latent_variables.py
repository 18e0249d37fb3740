"""A latent-variable model is trained by a lower bound on log p(x), which is loose by exactly KL(q ‖ posterior).

Source: S2, S4; Kingma and Welling 2014, eq. 3. For any q(z|x) (S2 writes q(z); it depends on x)

    log p(x) - ELBO(x) = KL(q(z|x) ‖ p(z|x)) >= 0,    ELBO = E_q log p(x|z) - KL(q(z|x) ‖ p(z)).

In the linear-Gaussian model x = W z + b + s ε all of it has closed forms (probabilistic PCA, Tipping and Bishop 1999),
so the slack can be checked for any q, and the best log-likelihood that a linear VAE can reach is known. (The script
12_vae_gan.py plays a VAE against a GAN, on the digits.)
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import claims, plots
from minigan.claims import Claim, below
from minigan.vae import VAE


def log_normal(x, covariance):
    """log N(x; 0, covariance) (n,) of rows x."""
    squares = (x @ np.linalg.inv(covariance) * x).sum(1)
    return -(squares + np.linalg.slogdet(covariance)[1] + x.shape[1] * math.log(2 * math.pi)) / 2


def kl_normal(m, S, mean, covariance):
    """KL(N(m, S) ‖ N(mean, covariance)) (n,), for rows m and mean (n, latent)."""
    precision, d = np.linalg.inv(covariance), mean - m
    constant = np.trace(precision @ S) - len(S) + np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(S)[1]
    return ((d @ precision * d).sum(1) + constant) / 2


def posterior(W, s2, x):
    """Mean (n, latent) and covariance of p(z|x) for x = W z + s ε, W (features, latent)."""
    covariance = np.linalg.inv(np.eye(W.shape[1]) + W.T @ W / s2)
    return x @ W @ covariance / s2, covariance


def slack_of_random_encoders(rng, models=200):
    """(log p(x) - ELBO, KL(q ‖ posterior)) in closed form for random linear models and encoders, two (models * 5,)."""
    slack, kl = [], []
    for i in range(models):
        W, s2 = rng.standard_normal((4, 2)), rng.uniform(0.1, 2)
        x = rng.standard_normal((5, 4)) @ np.linalg.cholesky(W @ W.T + s2 * np.eye(4)).T
        mean, covariance = posterior(W, s2, x)
        size = 0 if i == 0 else 10 ** rng.uniform(-2, 0.5)  # how far q is from the posterior: the first one not at all
        m = mean + size * rng.standard_normal((5, 2))
        root = np.linalg.cholesky(covariance) + size * rng.standard_normal((2, 2))
        S = root @ root.T
        expected = -(((x - m @ W.T) ** 2).sum(1) + np.trace(W @ S @ W.T)) / s2 / 2 - 2 * math.log(2 * math.pi * s2)
        elbo = expected - kl_normal(m, S, np.zeros_like(m), np.eye(2))
        slack.append(log_normal(x, W @ W.T + s2 * np.eye(4)) - elbo)
        kl.append(kl_normal(m, S, mean, covariance))
    return np.concatenate(slack), np.concatenate(kl)


def linear_vae(seed, steps):
    """A VAE without hidden layers: rows of (step, its exact mean log p, its ELBO, KL(q ‖ posterior)); best log p."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((1000, 2)) @ np.array([[2, 1, 0, 0, 1], [0, 0, 1, 2, -1]]) + rng.standard_normal((1000, 5))
    rows = []

    def look(vae):
        if vae.step not in (100, 200, 400, 800, 1600, 3200, steps):
            return
        W, s2 = vae.decoder.params.layers[0][0].T.astype(float), math.exp(vae.log_s2[0])
        x = vae.data.normalise(X).astype(float)
        centred = x - vae.decoder.params.layers[0][1]
        mu, log_sigma2 = vae.encode(x)
        mean, covariance = posterior(W, s2, centred)
        q = zip(mu, np.exp(log_sigma2), mean, strict=True)
        kl = np.mean([kl_normal(m[None], np.diag(v), t[None], covariance) for m, v, t in q])
        exact = log_normal(centred, W @ W.T + s2 * np.eye(5)).mean() - np.log(vae.data.scale).sum()
        rows.append((vae.step, exact, vae.elbo(X, draws=200).mean(), kl))

    vae = VAE("", "", 2, s=0.5, steps=steps, lr=0.01, lr_end=0.01, batch_size=100, seed=seed).fit(X, look)
    x = vae.data.normalise(X).astype(float)
    eigenvalues, axes = np.linalg.eigh(np.cov(x.T, bias=True))
    eigenvalues[:3] = eigenvalues[:3].mean()
    return np.array(rows).T, log_normal(x, axes * eigenvalues @ axes.T).mean() - np.log(vae.data.scale).sum()


def run(seed=0, quick=False):
    """The slack in closed form, and a linear VAE as it learns."""
    slack, kl = slack_of_random_encoders(np.random.default_rng(seed), 50 if quick else 200)
    rows, best = linear_vae(seed, 3200 if quick else 6000)
    gap = np.abs(rows[1] - rows[2] - rows[3]).max()
    found = [
        below(15, "slack of the bound = KL(q ‖ posterior), closed forms", np.abs(slack - kl).max(), 1e-9),
        Claim(15, "slack >= 0, and 0 for q = posterior", ">= 0; < 1e-12", f"least {slack[5:].min():.1e}; "
              f"{np.abs(slack[:5]).max():.1e}", slack[5:].min() >= 0 and np.abs(slack[:5]).max() < 1e-12),
        below(15, "linear VAE in training: log p - ELBO (200 draws) = KL(q ‖ posterior)", gap, 0.02, "nats"),
        Claim(15, "linear VAE reaches the best log-likelihood there is (PCA)", f"{best:.3f} within 0.01 nats",
              f"{rows[1, -1]:.3f}", best - 0.01 < rows[1, -1] < best + 1e-5),
    ]  # fmt: skip

    title = "The ELBO falls short of log p(x) by KL(q ‖ posterior), and training closes the gap"
    fig, (left, right) = claims.figure(title, columns=2, width=10, height=4)
    some = kl > 1e-9
    left.loglog(kl[some], slack[some], ".", color=plots.REAL, ms=4)
    left.loglog([1e-4, 1e4], [1e-4, 1e4], color=plots.GREY, lw=0.8, ls=":")
    left.text(1e1, 1e-3, "200 random linear models,\neach with a random encoder,\nall on the diagonal", fontsize=9)
    left.set(xlabel="KL(q(z|x) ‖ p(z|x)), nats", ylabel="log p(x) - ELBO, nats")
    step, exact, elbo, _ = rows
    right.fill_between(step, elbo, exact, color=plots.GREY, alpha=0.25, lw=0)
    right.plot(step, exact, color=plots.REAL, lw=2, marker="o", ms=4)
    right.plot(step, elbo, color=plots.FAKE, lw=2, marker="o", ms=4)
    right.axhline(best, color=plots.INK, lw=0.8, ls=":")
    right.text(step[-1], best + 0.03, "best of all linear models (PCA)", fontsize=9, ha="right", va="bottom")
    right.annotate(
        "log p(x)", (step[2], exact[2]), (-10, 4), ha="right", textcoords="offset points", color=plots.REAL, fontsize=9
    )
    right.annotate("ELBO", (step[2], elbo[2]), (8, -8), textcoords="offset points", color=plots.FAKE, fontsize=9)
    right.annotate(
        "grey: KL(q ‖ posterior)",
        (step[1], (elbo[1] + exact[1]) / 2),
        (60, -60),
        fontsize=9,
        textcoords="offset points",
        color=plots.GREY,
        arrowprops=dict(arrowstyle="-", color=plots.GREY),
    )
    right.set(xscale="log", xlabel="steps of a linear VAE, log scale", ylabel="nats a row, mean")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
