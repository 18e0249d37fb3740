"""For a fixed G the best D is p_data / (p_data + p_g), and its value is -log 4 + 2 JSD(p_data, p_g).

Source: Goodfellow et al. 2014, Proposition 1 and Theorem 1; S0 to S3. Maximise p_data log D + p_g log(1 - D) at each
x: p_data/D - p_g/(1 - D) = 0. Put D* in, and with M = (p_data + p_g)/2 what is left is
C(G) = max V = -log 4 + KL(p_data || M) + KL(p_g || M). Any other D has a smaller V, so on rows it has not seen
(V̂ + log 4)/2 estimates a lower bound of the JSD.
(Misprints: S0 has a plus before p_g/(1 - D); S1 has p_data/(p_data + p_g) in place of M; S2 calls the sum of the two
KLs the JSD, which is half of it.)
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, losses, metrics, plots
from minigan.claims import Claim, below
from minigan.gan import draw_prior

LOG_4 = np.log(4)
MEAN, WIDTH = 0.5, 1.5  # of p_g, a Gaussian: G(z) = MEAN + WIDTH z
GRID = np.linspace(-12, 12, 48_001)  # for quadrature; both densities are below 1e-15 outside


def p_g(x):
    """The density of G's samples."""
    return np.exp(-(((x - MEAN) / WIDTH) ** 2) / 2) / (WIDTH * np.sqrt(2 * np.pi))


def integral(f):
    """Integral of values on GRID; the trapezoidal rule is exact to rounding for densities this smooth."""
    return float(f.sum() * (GRID[1] - GRID[0]))


def theorem_on_distributions(rng):
    """Over random discrete pairs: largest |V(D*) - (-log 4 + 2 JSD)|, smallest V(D*) + log 4, and it for p = q."""
    worst, least, equal = 0.0, np.inf, 0.0
    for n in rng.integers(2, 100, 1000):
        p, q = rng.dirichlet(np.full(n, rng.choice([0.1, 1, 10])), 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            at_best = lambda p, q: np.nansum(p * np.log(p / (p + q))) + np.nansum(q * np.log(q / (p + q)))
            worst = max(worst, abs(at_best(p, q) - (2 * metrics.jensen_shannon(p, q) - LOG_4)))
            least, equal = min(least, at_best(p, q) + LOG_4), max(equal, abs(at_best(p, p) + LOG_4))
    return worst, least, equal


def frozen_gan(seed, steps):
    """A GAN whose G is the Gaussian p_g, for steps of D alone."""
    gan = GAN(generator="", discriminator="64, tanh, 64, tanh", latent_dim=1, batch_size=512, optimizer="adam",
              lr=0.005, lr_end=0.01, momentum=0.9, r1=0.0, steps=steps, seed=seed).build(load("gaussians"))  # fmt: skip
    gan.G.theta[...] = gan.averaged.flat[...] = WIDTH, MEAN
    return gan


def held_out(gan, n, seed):
    """(V̂ on n fresh real and n fresh generated rows, its standard error)."""
    real = gan.data.real_samples(n, seed)
    fake = gan.decode(draw_prior(np.random.default_rng(seed + 1), np.empty((n, 1), np.float32), gan.prior))
    log_D = [np.log(gan.probability(real).astype(float)), np.log1p(-gan.probability(fake).astype(float))]
    return sum(x.mean() for x in log_D), np.sqrt(sum(x.var() / n for x in log_D))


def run(seed=0, quick=False):
    """Theorem 1 by sums and integrals, then a D that is trained against a G that stands still."""
    identity, least, equal = theorem_on_distributions(np.random.default_rng(seed))
    p, q = load("gaussians").density(GRID), p_g(GRID)
    best = p / (p + q)
    C = integral(p * np.log(best) + q * np.log1p(-best))
    jsd = (C + LOG_4) / 2
    by_metrics = metrics.jensen_shannon_1d(load("gaussians").density, p_g, -12, 12, bins=1000)

    steps, n = (2000, 50_000) if quick else (4000, 200_000)
    gan, rows = frozen_gan(seed, steps), []
    for gan.step in range(steps + 1):
        if gan.step in (0, 10, 30, 100, 300, 1000, steps):
            logit = gan._in_blocks(gan.D, GRID[:, None])[:, 0].astype(float)
            V = -integral(p * losses.softplus(-logit) + q * losses.softplus(logit))
            rows.append((gan.step, V, *held_out(gan, n, 1000 * seed + gan.step)))
        gan.discriminator_step()
    step, V, V_hat, error = np.array(rows).T
    D = losses.sigmoid(logit)
    off = integral((p + q) / 2 * np.abs(D - best))
    excess = ((V_hat + LOG_4) / 2 - jsd) / (error / 2)
    found = [
        below(6, "C(G) = -log 4 + 2 JSD, 1000 random distributions", identity, 1e-12),
        Claim(6, "C(G) ≥ -log 4, with equality if p = q", "smallest > 0; |C + log 4| < 1e-12 if p = q",
              f"{least:.2g}; {equal:.1e}", least > 0 and equal < 1e-12),
        below(6, "the same for densities, by quadrature", abs(by_metrics - jsd), 1e-5, f"JSD {jsd:.5f}, difference"),
        below(5, "a trained D is p_data/(p_data + p_g): mean |D - D*|, weighted by density", off, 0.02),
        Claim(7, "V̂ of the trained D on fresh rows is C(G)", f"{C:.4f} ± 0.02", f"{V_hat[-1]:.4f}",
              abs(V_hat[-1] - C) < 0.02),
        Claim(7, "V(D) < C(G) for every D along the way", f"< {C:.4f}", f"largest {V.max():.4f}", V.max() < C),
        Claim(7, "(V̂ + log 4)/2 on fresh rows is a lower bound of the JSD",
              f"< {jsd:.4f} + {1.5 * error[-1]:.4f} (3 s.e.)",
              f"{(V_hat[-1] + LOG_4) / 2:.4f}; worst {excess.max():+.1f} s.e.", excess.max() < 3),
    ]  # fmt: skip

    fig, (left, right) = claims.figure("Trained against a fixed G, D becomes p_data / (p_data + p_g)", columns=2)
    left.plot(GRID, p, ":", color=plots.INK, lw=1.8)
    left.fill_between(GRID, q, color=plots.P_G, alpha=0.2, lw=0)
    left.plot(GRID, best, color=plots.GREY, lw=4, alpha=0.4)
    left.plot(GRID, D, "--", color=plots.REAL, lw=1.6)
    left.set(xlabel="x", ylabel="density, and D(x)", xlim=(-4, 5), ylim=(0, 1.3))
    left.set_title(f"mean |D - D*| = {off:.4f}", fontsize=9, loc="left")
    labels = [
        ("D* by the formula", plots.GREY),
        ("D(x), trained", plots.REAL),
        ("p_data", plots.INK),
        ("p_g", plots.P_G),
    ]
    for i, (text, color) in enumerate(labels):
        left.text(2.7, 1.22 - 0.09 * i, text, color=color, fontsize=9)
    right.axhline(jsd, color=plots.INK, lw=1)
    right.text(steps, jsd, "JSD by quadrature", fontsize=9, ha="right", va="bottom")
    right.plot(np.maximum(step, 3), (V + LOG_4) / 2, color=plots.REAL, lw=1.5)
    right.errorbar(np.maximum(step, 3), (V_hat + LOG_4) / 2, 3 * error / 2, fmt="o", ms=4, color=plots.FAKE)
    right.text(3, jsd * 0.72, "(V + log 4)/2\nline: by quadrature\ndots: V̂ on fresh rows, ± 3 s.e.", fontsize=9)
    right.set(xlabel="steps of D, G stands still (first point: step 0)", ylabel="nats", xscale="log")
    right.set_title("from below: a lower bound of the JSD", fontsize=9, loc="left")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
