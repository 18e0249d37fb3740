"""The value of the game is a classifier's loss, and G has two losses: the same goal, not the same gradient.

Source: Goodfellow et al. 2014, eq. 1 and section 3; all documents. V̂ = mean log D(x) + mean log(1 - D(G(z)))
is -2 times the binary cross-entropy of D over m real and m generated rows. In the logit s of a generated row, with
D = σ(s), minimax descends log(1 - D): gradient -D; non-saturating descends -log D: gradient D - 1. Their ratio is
(1 - D)/D, so while D still rejects every sample only the second one tells G anything.
(S2 and S3 misprint the second term, as E[1 - log D(G(z))] and log D(1 - D(G(z))); it is log(1 - D(G(z))).)
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, gradcheck, load, losses, metrics, plots
from minigan.claims import Claim, below

NETWORKS = dict(generator="16, tanh", discriminator="16, leaky_relu 0.2, 8, tanh", latent_dim=3, batch_size=6, r1=0.0)


def identity(rng):
    """Largest relative difference of V̂ and -2 BCE over random batches, near and far from s = 0."""
    worst = 0.0
    for scale in (0.1, 1, 10, 100) * 50:
        m = int(rng.integers(1, 200))
        real, fake = scale * rng.standard_normal((2, m, 1))
        cross_entropy = losses.bce(np.vstack([real, fake]), np.vstack([np.ones((m, 1)), np.zeros((m, 1))]))
        worst = max(worst, abs(losses.value(real, fake) / (-2 * cross_entropy) - 1))
    return worst


def through_the_networks(loss, network, rng):
    """Relative error of the step's gradient in all weights of D or G, against central differences."""
    error = None
    while error is None:  # where a tensor's gradient happens to be too small to judge, another network is drawn
        error = gradcheck.check_gan({**NETWORKS, "loss": loss}, rng, 3)[network, "central differences"]
    return error


def logit_gradients(loss, s):
    """dL_G/ds of each row, times m: the function the formulas speak of, from the library's own."""
    return losses.generator_gradient(s[:, None], np.empty((len(s), 1)), loss)[:, 0] * len(s)


def race(loss, seed, head_start, steps):
    """G against a D that was trained ``head_start`` steps alone: JSD and D(G(z)) of every step, and the first gradient.

    Both losses get the same weights, data and noise up to the moment when the race begins.
    """
    data = load("gaussian")
    gan = GAN(loss=loss, generator="32, relu", discriminator="32, leaky_relu 0.2, 32, leaky_relu 0.2", latent_dim=2,
              batch_size=256, lr=0.05, steps=steps, r1=0.0, average=0.0, init_G="glorot",
              seed=seed).build(data)  # fmt: skip
    gan.G.theta[-1] = -5.0  # G's last bias: its samples start far left of the data
    for _ in range(head_start):
        gan.discriminator_step()
    gan.generator_gradient()
    norm, rows = float(np.linalg.norm(gan.grad_G.flat)), []
    for step in range(steps):
        if step % 2 == 0:
            x = gan.sample(1000, seed=1)
            rows.append((step, metrics.jensen_shannon_1d(data.density, x, -9, 5), gan.probability(x).mean()))
        gan.train_step()
    return norm, np.array(rows).T


def run(seed=0, quick=False):
    """The identity, the gradients, the ratio, and the race."""
    rng = np.random.default_rng(seed)
    same = identity(rng)
    of_D = through_the_networks("minimax", "D", rng)
    minimax, non_saturating = (through_the_networks(loss, "G", rng) for loss in ("minimax", "non-saturating"))
    s = np.linspace(-14, 14, 281)
    D = losses.sigmoid(s)
    weak, strong = logit_gradients("minimax", s), logit_gradients("non-saturating", s)
    rejected = np.log([1e-4 / (1 - 1e-4)])  # the logit at which D = 1e-4
    at_rejection = (logit_gradients("non-saturating", rejected) / logit_gradients("minimax", rejected))[0]
    off = np.abs(strong / weak / ((1 - D) / D) - 1).max()
    steps = 400
    norms, paths = zip(*(race(loss, seed, 1500, steps) for loss in ("minimax", "non-saturating")), strict=True)
    half = [next((int(t) for t, jsd, _ in path.T if jsd < np.log(2) / 2), steps) for path in paths]
    never = ["never" if n == steps else str(n) for n in half]

    found = [
        below(1, "V̂ = -2 BCE over the balanced 2m rows", same, 1e-12, "relative"),
        below(1, "gradient of -V̂ in all of D's weights", of_D, 1e-6, "finite differences,"),
        below(3, "minimax: d/ds log(1 - D) = -D", np.abs(weak + D).max(), 1e-12),
        below(3, "and through D into all of G's weights", minimax, 1e-6, "finite differences,"),
        below(4, "non-saturating: d/ds -log D = D - 1", np.abs(strong - D + 1).max(), 1e-12),
        below(4, "and through D into all of G's weights", non_saturating, 1e-6, "finite differences,"),
        Claim(4, "ratio of the two gradients is (1 - D)/D, 10⁴ at D = 10⁻⁴", "9999 and < 1e-9 elsewhere",
              f"{at_rejection:.3f}, {off:.1e}", abs(at_rejection / 9999 - 1) < 1e-9 and off < 1e-9),
        Claim(4, "against a strong D G's first gradient is far larger", "> 100 times",
              f"D(G(z)) = {paths[0][2, 0]:.1e}: {norms[1] / norms[0]:.0f} times", norms[1] > 100 * norms[0]),
        Claim(4, "so G starts faster: steps until the JSD has halved", "non-saturating < minimax / 2",
              f"{never[1]}, {never[0]}", half[1] < half[0] / 2),
    ]  # fmt: skip

    fig, (left, right) = claims.figure("While D rejects every sample, the minimax loss gives G no gradient", columns=2)
    for values, color, text in ((-weak, plots.FAKE, "minimax: D"), (-strong, plots.P_G, "non-saturating: 1 - D")):
        left.semilogy(s, values, color=color, lw=2, label=text)
    left.axvline(rejected[0], color=plots.GREY, lw=0.8, ls=":")
    left.annotate(f"D = 10⁻⁴:\n{at_rejection:,.0f} times", (rejected[0], 1e-2), fontsize=9, ha="center",
                  bbox=dict(color="white"))  # fmt: skip
    left.legend(frameon=False, fontsize=9, loc="lower right")
    left.set(xlabel="logit s of a generated row: D = σ(s)", ylabel="strength of G's gradient in s", xlim=(-14, 14))
    for path, color, text in zip(paths, (plots.FAKE, plots.P_G), ("minimax", "non-saturating"), strict=True):
        right.plot(path[0], path[1], color=color, lw=2)
        right.text(steps, path[1, -1] + 0.02, text, color=color, ha="right", fontsize=9)
    right.axhline(np.log(2), color=plots.GREY, lw=0.8, ls=":")
    right.text(steps / 4, np.log(2) + 0.02, "log 2: no overlap", fontsize=8.5, color=plots.GREY)
    right.set(xlabel="steps of G, against a D that had 1,500 steps alone", ylabel="JSD of data and samples",
              ylim=(0, 0.8), xlim=(0, steps))  # fmt: skip
    return found, fig


if __name__ == "__main__":
    claims.main(run)
