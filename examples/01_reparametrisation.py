"""A sample can be differentiated: y = μ + σz, and y = μ(x) + σ(x)z with a network for μ and σ.

Source: S0, "Stochastic back propagation"; Kingma and Welling 2014, section 2.4. With z ~ N(0, 1) held, y is a
smooth function of μ and σ: dL/dμ = mean dL/dy, dL/dσ = mean z dL/dy, and through a network by the chain rule.
Which loss is another matter. S0 takes the squared distance of independent draws, whose mean is
E(y - t)² = (μ - E t)² + σ² + Var t: least for σ = 0, not for the data's σ. Likelihood and an adversary find it.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, plots
from minigan.claims import Claim
from minigan.gradcheck import central_difference, relative_error
from minigan.mlp import MLP, parse_layers
from minigan.optim import Adam, linear

MU, SIGMA = 1.5, 0.7  # of the data set "gaussian"
true_mu = lambda x: 2 + np.sin(2 * x)
true_sigma = lambda x: 0.3 + 0.2 * x**2


def squared(mu, sigma, z, t):
    """S0's loss, mean (y - t)² over y = μ + σz, with its gradients in μ and σ, row by row."""
    dy = 2 * (mu + sigma * z - t) / len(t)
    return ((mu + sigma * z - t) ** 2).mean(), dy, dy * z


def likelihood(mu, sigma, z, t):
    """Mean -log N(t; μ, σ²), with its gradients; no sample is needed, z is not used."""
    u = (t - mu) / sigma
    return (np.log(sigma) + u**2 / 2 + np.log(2 * np.pi) / 2).mean(), -u / sigma / len(t), (1 - u**2) / sigma / len(t)


def heads(net, x, tape):
    """μ(x) and σ(x) = exp of the second output, each (n, 1); σ is positive that way."""
    out = net.forward(x, tape)
    return out[:, :1], np.exp(out[:, 1:])


def gradient(net, loss, x, z, t, tape, grad):
    """The loss, and its gradient in the network's weights into grad: dL/dρ = σ dL/dσ for σ = exp(ρ)."""
    mu, sigma = heads(net, x, tape)
    value, dmu, dsigma = loss(mu, sigma, z, t)
    net.backward(np.hstack([dmu, sigma * dsigma]), tape, grad, need_dx=False)
    return value


def fit(loss, rng, steps, m=256):
    """A network x -> (μ, ρ), 2 x 32 tanh, after ``steps`` steps of Adam on fresh (x, t)."""
    net = MLP(parse_layers("32, tanh, 32, tanh", 1, 2), dtype=np.float64)
    net.initialise(rng, "glorot")
    optimizer, tape, grad = Adam(net.theta), net.tape(m), net.vector()
    for step in range(steps):
        x = rng.uniform(-1.5, 1.5, (m, 1))
        t = true_mu(x) + true_sigma(x) * rng.standard_normal((m, 1))
        gradient(net, loss, x, rng.standard_normal((m, 1)), t, tape, grad)
        optimizer.step(net.theta, grad.flat, linear(0.01, 0, step, steps), 0.9)
    return net


def finite_difference_error(rng):
    """Worst relative error of the network's gradient through the sample, against central differences."""
    net = MLP(parse_layers("5, tanh", 1, 2), dtype=np.float64)
    net.theta[...] = 0.5 * rng.standard_normal(net.theta.size)
    x, z, t = (rng.standard_normal((7, 1)) for _ in range(3))
    tape, grad = net.tape(7), net.vector()
    gradient(net, squared, x, z, t, tape, grad)
    return relative_error(grad.flat, central_difference(lambda: squared(*heads(net, x, tape), z, t)[0], net.theta))


def adversarial(seed, steps):
    """(μ, σ) of a GAN whose generator is μ + σz and nothing else, and their path while it trains."""
    gan = GAN(generator="", discriminator="32, tanh, 32, tanh", latent_dim=1, steps=steps, batch_size=512, lr=0.1,
              lr_end=0.02, r1=0.02, average=0.999, report_every=steps // 50, seed=seed)  # fmt: skip
    path = []
    gan.fit(load("gaussian"), on_report=lambda gan: path.append(gan.averaged.flat.copy()))
    path = np.array([[b, abs(W)] for W, b in path])  # -z is as good as z
    return path


def run(seed=0, quick=False):
    """Both claims, and the counterexample."""
    rng = np.random.default_rng(seed)
    error = finite_difference_error(rng)
    theta = np.array([0.0, 1.0])  # μ, σ under S0's loss, plain gradient descent
    squared_path = [theta.copy()]
    for step in range(500):
        z, t = rng.standard_normal(512), MU + SIGMA * rng.standard_normal(512)
        _, dmu, dsigma = squared(*theta, z, t)
        theta -= linear(0.05, 0, step, 500) * np.array([dmu.sum(), dsigma.sum()])
        squared_path.append(theta.copy())
    squared_path = np.array(squared_path)
    path = adversarial(seed, 4000)  # the small budget too: with fewer steps σ has not settled for every seed
    by_likelihood = fit(likelihood, rng, 1300 if quick else 4000)
    by_squares = fit(squared, rng, 600 if quick else 1000)

    x = np.linspace(-1.5, 1.5, 301)[:, None]
    mu, sigma = heads(by_likelihood, x, by_likelihood.tape(301))
    mu_2, sigma_2 = heads(by_squares, x, by_squares.tape(301))
    off_mu, off_sigma = (np.abs(a / b - 1).mean() for a, b in ((mu, true_mu(x)), (sigma, true_sigma(x))))
    m, s = path[-1]
    found = [
        Claim(13, "gradient through the sample, network for μ(x), σ(x)", "finite differences, < 1e-6",
              f"{error:.1e}", error < 1e-6),
        Claim(13, "y = μ + σz against an adversary finds μ and σ", f"{MU}, {SIGMA} within 5 %", f"{m:.3f}, {s:.3f}",
              abs(m / MU - 1) < 0.05 and abs(s / SIGMA - 1) < 0.05),
        Claim(13, "y = μ(x) + σ(x)z by likelihood finds μ(x), σ(x)", "mean relative error < 5 %",
              f"{off_mu:.1%}, {off_sigma:.1%}", max(off_mu, off_sigma) < 0.05),
        Claim(13, "S0's squared loss: σ goes to 0 (counterexample)", f"μ {MU} within 5 %, σ < 0.01",
              f"{theta[0]:.3f}, {theta[1]:.1e}", abs(theta[0] / MU - 1) < 0.05 and abs(theta[1]) < 0.01),
        Claim(13, "the same with σ(x): it goes to 0 everywhere", "largest σ(x) < 0.05", f"{sigma_2.max():.3f}",
              sigma_2.max() < 0.05),
    ]  # fmt: skip

    fig, (left, right) = claims.figure(
        "Gradients pass through a sample. An adversary or the likelihood finds σ; a squared loss drives it to 0",
        columns=2,
    )
    for y, text in ((MU, "data's μ"), (SIGMA, "data's σ")):
        left.axhline(y, color=plots.GREY, lw=0.8, ls=":")
        left.text(1, y, f" {text}", va="center", fontsize=8.5, transform=left.get_yaxis_transform())
    for values, color, text in ((path, plots.P_G, "adversary"), (squared_path, plots.FAKE, "squared loss")):
        share = np.linspace(0, 1, len(values))
        left.plot(share, values[:, 0], color=color, lw=1.5, label=f"μ, {text}")
        left.plot(share, values[:, 1], color=color, lw=1.5, ls="--", label=f"σ, {text}")
    left.set(xlabel="share of the training", ylabel="parameters of y = μ + σz", xlim=(0, 1))
    left.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(0.45, 0.25))
    points = rng.uniform(-1.5, 1.5, 400)
    right.scatter(points, true_mu(points) + true_sigma(points) * rng.standard_normal(400), s=5, color="#bbbbbb", lw=0)
    x = x[:, 0]
    for a, b, color in ((mu, sigma, plots.P_G), (mu_2, sigma_2, plots.FAKE)):
        right.fill_between(x, (a - b)[:, 0], (a + b)[:, 0], color=color, alpha=0.3, lw=0)
        right.plot(x, a, color=color, lw=1)
    right.plot(x, true_mu(x) + true_sigma(x), ":", x, true_mu(x) - true_sigma(x), ":", color=plots.INK, lw=1.2)
    right.set(xlabel="x", ylabel="y", xlim=(-1.5, 1.5))
    right.set_title("μ(x) ± σ(x): data's dotted; likelihood: band; squares: a line", fontsize=8.5, loc="left")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
