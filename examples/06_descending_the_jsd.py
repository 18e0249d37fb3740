"""Descending V with the best D lowers the JSD at every small step; with a D that lags behind it need not.

Source: Goodfellow et al. 2014, Proposition 2; S1, section 1.6; S2 and S4. C(G) = max_D V(D, G) can be
differentiated (envelope theorem): dC/dθ = ∂V/∂θ at D = D*, the change of D* itself contributes nothing.
Over a table of probabilities ∂V/∂p_g = log(1 - D*), and the step p_g ← p_g exp(-η log(1 - D*)), normalised, takes
any p_g to p_data. S1 asks whether each step decreases the divergence: only while D* hardly moves, so "train the
discriminator more often and the generator less". The map counts the steps of a real GAN that made the JSD larger.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, gradcheck, load, losses, metrics, plots
from minigan.claims import Claim, below

LOG_4 = np.log(4)
DATA, MU, SIGMA = load("gaussian"), 1.5, 0.7
GRID = np.linspace(-25, 25, 10_001)
P = DATA.density(GRID)
START = np.array([1.0, -1.5])  # σ, μ of G(z) = μ + σz before the first step
CLOSE = 0.02  # nats: nearer than this, minibatch noise decides
KS, RATES = (1, 2, 5, 20), (0.02, 0.1, 0.5, 2.5)


def table_descent(rng, n=40, steps=200):
    """C(G) + log 4 at each exponentiated gradient step, η = 0.3, of a random table of n probabilities."""
    p, q, path = *rng.dirichlet(np.ones(n), 2), []
    for _ in range(steps):
        path.append(2 * metrics.jensen_shannon(p, q))
        best = p / (p + q)
        q = q * np.exp(-0.3 * np.log1p(-best))
        q /= q.sum()
    return np.array(path)


def jsd(theta):
    """JSD of the data and N(μ, σ²), by quadrature; theta = (σ, μ), σ no finer than the grid can tell."""
    sigma, mu = max(abs(theta[0]), 0.02), theta[1]
    if abs(mu) > 20:
        return np.log(2)
    q = np.exp(-(((GRID - mu) / sigma) ** 2) / 2)
    return metrics.jensen_shannon(P, q)


def envelope_gradient(theta):
    """∂V/∂(σ, μ) at D = D* held fixed: E_z [d log(1 - D*(x))/dx · dx/dθ], x = μ + σz, by quadrature over z."""
    sigma, mu = theta
    z = np.linspace(-10, 10, 4001)
    x = mu + sigma * z
    logit = np.log(abs(sigma) / SIGMA) - ((x - MU) / SIGMA) ** 2 / 2 + z**2 / 2  # of D*: log p_data(x) - log p_g(x)
    dx = -losses.sigmoid(logit) * (z / sigma - (x - MU) / SIGMA**2)
    weight = np.exp(-(z**2) / 2) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    return np.array([(weight * dx * z).sum(), (weight * dx).sum()])


def exact_descent(rate, steps):
    """JSD after each step of G with the exact D*."""
    theta, path = START.copy(), [jsd(START)]
    for _ in range(steps):
        theta = theta - rate * envelope_gradient(theta)
        path.append(jsd(theta))
    return np.array(path)


def trained_descent(k, rate, steps, seed):
    """JSD after each step of G in Algorithm 1 with k steps of D, minimax loss, plain SGD."""
    gan = GAN(generator="", discriminator="32, tanh, 32, tanh", latent_dim=1, loss="minimax", k=k, lr=rate, lr_D=0.1,
              lr_end=1.0, momentum=0.0, r1=0.0, average=0.0, batch_size=256, steps=steps, seed=seed)  # fmt: skip
    gan.build(DATA)
    gan.G.theta[...] = START
    path = [jsd(START)]
    for _ in range(steps):
        gan.train_step()
        path.append(jsd(np.float64(gan.G.theta)))
    return np.array(path)


def increases(path):
    """Share of the steps that raised the JSD, of those that were not close to the optimum."""
    far = np.maximum(path[1:], path[:-1]) > CLOSE
    return float((np.diff(path)[far] > 0).mean())


def run(seed=0, quick=False):
    """Tables, the envelope theorem, and the map of k against the learning rate."""
    rng = np.random.default_rng(seed)
    tables = np.array([table_descent(rng) for _ in range(100)])
    errors = []
    for _ in range(20):
        theta = np.array([rng.uniform(0.4, 2), rng.uniform(-1, 4)])
        numerical = gradcheck.central_difference(lambda theta=theta: 2 * jsd(theta) - LOG_4, theta)
        errors.append(gradcheck.relative_error(envelope_gradient(theta), numerical))
    steps, ks = (150, (1, 20)) if quick else (200, KS)
    rates = RATES[1:3] if quick else RATES
    paths = {("D*", rate): exact_descent(rate, steps) for rate in RATES}
    paths |= {(k, rate): trained_descent(k, rate, steps, seed) for k in ks for rate in rates}
    shares = {key: increases(path) for key, path in paths.items()}
    rise = max(np.diff(paths["D*", rate]).max() for rate in RATES[:3])
    lagging, close = (np.mean([shares[k, rate] for rate in rates if rate < 1]) for k in (1, 20))
    found = [
        below(8, "exact D*, p_g a table: C(G) never rises (100 tables)", np.diff(tables, axis=1).max(), 1e-15, "rise"),
        below(8, "and ends at -log 4", tables[:, -1].max(), 1e-12, "C + log 4"),
        below(10, "d max_D V/dθ = ∂V/∂θ at D*", max(errors), 1e-6, "finite differences,"),
        below(10, "exact D*, rates up to 0.5: no step raises the JSD", rise, 1e-15, "largest rise"),
        Claim(10, "exact D*, rate 2.5: D* moves too far, and not every step does", "> 0 % rise",
              f"{shares['D*', 2.5]:.0%}", shares["D*", 2.5] > 0),
        Claim(10, "at these rates, D trained: fewer steps raise it with k = 20 than with k = 1", "less than half",
              f"{close:.0%} against {lagging:.0%}", close < lagging / 2),
    ]  # fmt: skip

    fig, (left, middle, right) = claims.figure(
        "Descending V lowers the JSD as long as D keeps up with G", columns=3, width=12.5, width_ratios=[0.8, 1.2, 1]
    )
    left.semilogy(np.maximum(tables[:20].T, 1e-17), color=plots.P_G, lw=0.8, alpha=0.6)
    left.set(xlabel="step", ylabel="C(G) + log 4 = 2 JSD", ylim=(1e-17, 2))
    left.set_title("p_g a table, exact D*: 20 random starts", fontsize=9, loc="left")
    shown = {(1, 0.1): plots.FAKE, (20, 0.1): plots.REAL, ("D*", 0.1): plots.INK, ("D*", 2.5): plots.GREY}
    for (k, rate), color in shown.items():
        name = f"exact D*, rate {rate}" if k == "D*" else f"k = {k}, rate {rate}"
        middle.plot(paths[k, rate], color=color, lw=1, ls="-" if rate < 1 else ":", label=name)
    middle.axhline(0, color="#cccccc", lw=0.8)
    middle.set(xlabel="steps of G, x = μ + σz", ylabel="JSD by quadrature, nats")
    middle.legend(frameon=False, fontsize=8.5)
    middle.set_title("too few steps of D, or too long a step of G", fontsize=9, loc="left")
    rows = [*ks, "D*"]
    table = np.array([[shares.get((k, rate), np.nan) for rate in RATES] for k in rows])
    right.imshow(table, cmap="Oranges", vmin=0, vmax=0.8, aspect="auto")
    for (i, j), share in np.ndenumerate(table):
        right.text(j, i, f"{share:.0%}", ha="center", va="center", fontsize=9)
    right.set_xticks(range(len(RATES)), [f"{rate}" for rate in RATES])
    right.set_yticks(range(len(rows)), [str(k) for k in rows])
    right.set(xlabel="learning rate of G", ylabel="k: steps of D for each of G")
    right.set_title("steps that raised the JSD, far from the optimum", fontsize=9, loc="left")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
