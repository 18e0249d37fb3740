"""What can a generative model say about its own density? Three models of one data set, one of each kind, one table.

Source: S0, the tree of deep generative models (Goodfellow 2016, arXiv 1701.00160, figure 9).

    explicit, exact         Gaussian mixture    log p(x) itself; e to its power has mass 1
    explicit, approximate   VAE                 ELBO(x) <= log p(x); e to its power has mass below 1
    implicit                GAN                 samples, and nothing to ask about an x

The mass is the integral over the plane: what is missing from 1 is what the bound loses. The VAE's own p(x) = E_z
p(x|z) can be had here, where z has two dimensions, by brute force: 10,000 draws of the prior; in many dimensions none
of them would come near x. The importance-weighted bound (Burda et al. 2016) lies between the two. What all three can
be asked for is samples, and those are scored alike. The GAN's "log-likelihood" is that of a Parzen window on its
samples: a stand-in, not the model's.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, metrics, plots
from minigan.claims import Claim, below
from minigan.mixture import GaussianMixture
from minigan.vae import VAE

HIDDEN = "64, relu, 64, relu, 64, relu"
EDGES, CELL = ((-2.5, 3.5), (-2.0, 2.5)), 0.05  # half of a moon's thickness


def plane():
    """The centres of the cells (n, 2), and the shape of the grid."""
    x, y = (np.arange(low + CELL / 2, high, CELL) for low, high in EDGES)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), (len(y), len(x))


def log_truth(x):
    """log p(x) (n,) of the moons: the mean of Gaussians of width 0.05 along the two half circles."""
    t = (np.arange(400) + 0.5) * np.pi / 400
    curve = np.concatenate([np.stack([np.cos(t), np.sin(t)], 1), np.stack([1 - np.cos(t), 0.5 - np.sin(t)], 1)])
    return metrics._log_parzen(x.astype(float), curve, [0.05], 256)[0]


def vae_log_density(vae, x, seed):
    """log E_z p(x|z) (n,), nats, by 10,000 draws of the prior: a Gaussian of width s around every decoded z."""
    centres = vae.data.normalise(vae.sample(10_000, seed))
    log_p = metrics._log_parzen(vae.data.normalise(x), centres, [np.exp(vae.log_s2[0] / 2)], 256)[0]
    return log_p - np.log(vae.data.scale).sum()


def run(seed=0, quick=False):
    """Fit the three, ask them for densities and samples."""
    data = load("moons")
    n, steps, draws = (500, 800, 10) if quick else (2000, 8000, 100)
    train, test, other = (data.real_samples(n, 10 * seed + i) for i in range(3))
    mixture = GaussianMixture(16, floor=1e-4, seed=seed).fit(train)
    vae = VAE(HIDDEN, HIDDEN, 2, steps=steps, batch_size=128, lr=0.002, lr_end=0.01, seed=seed).fit(train)
    gan = GAN(generator=HIDDEN, discriminator=HIDDEN.replace("relu", "leaky_relu 0.2"), latent_dim=2, batch_size=128,
              steps=steps // 4 if quick else steps, lr=0.03, r1=0.02, init_D="he", seed=seed,
              backend="numpy").fit(train)  # fmt: skip
    grid, shape = plane()
    maps = {"mixture": mixture.log_density(grid), "VAE": vae.elbo(grid, draws)}
    mass = lambda log_p: float(np.exp(log_p).sum() * CELL**2)
    exact = mass(vae_log_density(vae, grid, seed))
    held_out = {"data": log_truth(test).mean(), "mixture": mixture.log_density(test.astype(float)).mean(),
                "VAE": vae.elbo(test, draws).mean()}  # fmt: skip
    tighter, log_p = vae.log_likelihood(test, draws).mean(), vae_log_density(vae, test, seed).mean()
    found = [
        below(26, "explicit, exact: the mixture's density has mass 1", abs(mass(maps["mixture"]) - 1), 0.001,
              "off by"),
        Claim(26, "explicit, approximate: e to the VAE's bound has less", "grid: 1 ± 0.01; ELBO: < 0.95",
              f"{exact:.4f}; {mass(maps['VAE']):.3f}", abs(exact - 1) < 0.01 and mass(maps["VAE"]) < 0.95),
        Claim(26, "held-out rows: ELBO, importance-weighted bound, log p of the VAE", "each below the next, to 0.02",
              f"{held_out['VAE']:.2f} < {tighter:.2f} < {log_p:.2f} (mixture, exact: {held_out['mixture']:.2f}; "
              f"the data's own density: {held_out['data']:.2f})", held_out["VAE"] < tighter < log_p + 0.02),
    ]  # fmt: skip
    fakes = {"data": other, "mixture": mixture.sample(n, seed), "VAE": vae.sample(n, seed, noise=True),
             "GAN": gan.sample(n, seed)}  # fmt: skip
    scores = {name: metrics.precision_recall_density_coverage(test, x) for name, x in fakes.items()}
    for name, x in fakes.items():
        sigmas = np.logspace(-2, 0, 21)
        scores[name]["parzen"] = metrics.parzen_log_likelihood(x, train[: n // 2], test, sigmas)["mean"]
    if not quick:
        share = lambda name: f"{name} {scores[name]['precision']:.2f}, {scores[name]['coverage']:.2f}"
        least = min(scores[name][k] for name in fakes for k in ("precision", "coverage"))
        found.append(Claim(26, "what all three give: samples, scored alike (precision, coverage)", "all > 0.75",
                           "; ".join(share(name) for name in fakes), least > 0.75))  # fmt: skip
    masses = {"mixture": mass(maps["mixture"]), "VAE": mass(maps["VAE"])}
    return found, draw(maps, shape, fakes, scores, held_out, masses)


def draw(maps, shape, fakes, scores, held_out, masses):
    """What each model says about the plane, its samples, and the table."""
    title = (
        "Ask three models of the two moons for p(x): the mixture knows it, the VAE knows a bound, the GAN only samples"
    )
    fig, axes = claims.figure(title, columns=4, width=16, height=3.7, width_ratios=(1, 1, 1, 1.45))
    heads = {"mixture": "log p(x), exact", "VAE": "ELBO(x) <= log p(x)", "GAN": "no density: samples are all it gives"}
    for ax, (name, head) in zip(axes, heads.items(), strict=False):
        if name in maps:
            picture = ax.imshow(np.maximum(maps[name], -8).reshape(shape), origin="lower", extent=np.ravel(EDGES),
                                cmap="Blues", vmin=-8, vmax=1.5, aspect="auto")  # fmt: skip
            fig.colorbar(picture, ax=ax, label="nats (-8 and less: white)")
        ax.scatter(*fakes[name][:200].T, s=3, color=plots.FAKE)
        mass = f"e to its power has mass {masses[name]:.3f}" if name in masses else "nothing to integrate"
        ax.set(xlim=(-1.6, 2.6), ylim=(-1.1, 1.6), xticks=[], yticks=[], xlabel=f"{mass}\norange: 200 samples")
        ax.set_title(f"{name}: {head}", fontsize=9.5)
    ax = axes[3]
    ax.axis("off")
    rows = [(held_out.get(name), *(scores[name][k] for k in ("parzen", "precision", "recall", "density", "coverage")))
            for name in fakes]  # fmt: skip
    text = [[(">= " if name == "VAE" and i == 0 else "") + (f"{v:.2f}" if v is not None else "none")
             for i, v in enumerate(row)] for name, row in zip(fakes, rows, strict=True)]  # fmt: skip
    columns = ["log p(x)\nheld out", "Parzen of\nsamples", "pre-\ncision", "recall", "density", "cover-\nage"]
    table = ax.table(text, rowLabels=[*fakes], colLabels=columns, bbox=(0.1, 0.2, 0.9, 0.65), cellLoc="center",
                     edges="horizontal")  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(8.5)
    ax.set_title("the same held-out rows for all; 'data': its own density and fresh rows", fontsize=9.5)
    return fig


if __name__ == "__main__":
    claims.main(run)
