"""A VAE against a GAN, and their child: a GAN whose generator is also the decoder of a VAE.

Source: S4, "a VAE as the generator"; Larsen et al. 2016 (arXiv 1512.09300), in its simplest form. In each iteration

    D         descends -V̂ + R1, on real rows and on G(z), z from the prior
    G         descends L_G through D on G(z), plus 0.01 times -ELBO on reconstructions: it is the decoder
    encoder   descends -ELBO; nothing adversarial reaches it

All have the same hidden layers, as many steps and the same held-out rows; whoever wins is reported. S4 says that GANs
often give samples of better quality than VAEs. With 32 latent numbers each that is so in every measure. A VAE with 6
has samples of better quality (density) and less variety (recall).
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, gradcheck, load, metrics, plots
from minigan.claims import Claim
from minigan.data import from_array
from minigan.vae import VAE, VAEGAN

MEASURES = ("precision", "recall", "density", "coverage")
HIDDEN = "192, relu, 192, relu"
OPTIONS = dict(generator=HIDDEN, discriminator="192, leaky_relu 0.2, 192, leaky_relu 0.2", latent_dim=32, lr=0.1,
               r1=0.03, init_D="he", backend="numpy")  # fmt: skip


def models(seed, steps):
    """{name: untrained model}, the child first."""
    vae = lambda latent: VAE(HIDDEN, HIDDEN, latent, steps=steps, lr_end=0.01, seed=seed)
    return {
        "VAE-GAN": VAEGAN(HIDDEN, elbo_weight=0.01, steps=steps, seed=seed, **OPTIONS),
        "GAN": GAN(steps=steps, seed=seed, **OPTIONS),
        "VAE": vae(32),
        "VAE, 6 latent": vae(6),
    }


def compare(scores, one, other):
    """In which measures ``one`` is ahead of ``other``, {measure: bool}, and a text of both sides, each one:other."""
    ahead = {k: scores[one][k] > scores[other][k] for k in MEASURES}
    text = {k: f"{k} {scores[one][k]:.2f}:{scores[other][k]:.2f}" for k in MEASURES}
    of = lambda side: ", ".join(text[k] for k in MEASURES if ahead[k] == side) or "none"
    return ahead, f"{one} in {of(True)}; {other} in {of(False)}"


def run(seed=0, quick=False):
    """Train them all on 1,200 digits and score them on 597 others."""
    X = load("digits").X[np.random.default_rng(seed).permutation(1797)]
    train, test = from_array(X[:1200], image_shape=(8, 8)), X[1200:]
    trained = models(seed, 300 if quick else 8000)
    if quick:
        trained = {"VAE-GAN": trained["VAE-GAN"]}
    for model in trained.values():
        model.fit(train)
    fakes = {name: model.sample(len(test), seed) for name, model in trained.items()}
    child = trained["VAE-GAN"]
    again = child.reconstruct(test)
    error, spread = np.sqrt(np.square(again - test).mean()), np.sqrt(test.var(0).mean())
    worst = max(check.error for check in gradcheck.check_vae_gan(seed))
    found = [
        Claim(25, "VAE-GAN: the gradients of its assembled step", "finite differences, < 1e-06", f"{worst:.1e}",
              worst < 1e-6),
        Claim(25, "it trains as a VAE: it rebuilds held-out digits", f"error below the data's {spread:.3f} / 1.5",
              f"{error:.3f} a pixel", error < spread / 1.5),
    ]  # fmt: skip
    scores = {name: metrics.precision_recall_density_coverage(test, x) for name, x in fakes.items()}
    if not quick:
        elbos = [m.elbo(test, 10).mean() for m in (child.vae, trained["VAE"])]
        (beats, text), (beside, text_gan) = (compare(scores, "VAE-GAN", name) for name in ("VAE", "GAN"))
        (same, text_same), (few, text_few) = (compare(scores, "GAN", name) for name in ("VAE", "VAE, 6 latent"))
        vae_error = np.sqrt(np.square(trained["VAE"].reconstruct(test) - test).mean())
        found += [
            Claim(25, "nearly as well as its parent VAE", f"error below 1.5 times its {vae_error:.3f}",
                  f"{error:.3f}, {error / vae_error:.2f} times", error < 1.5 * vae_error),
            Claim(25, "its samples beside its parent VAE's", "VAE-GAN in all four", text, all(beats.values())),
            Claim(25, "its samples beside its parent GAN's", "coverage at least the GAN's - 0.03", text_gan,
                  scores["VAE-GAN"]["coverage"] >= scores["GAN"]["coverage"] - 0.03),
            Claim(25, "the price: its held-out ELBO", "below the VAE's", f"{elbos[0]:.1f} < {elbos[1]:.1f} nats",
                  elbos[0] < elbos[1]),
            Claim(15, "GAN beside a VAE with as many latent numbers", "GAN in all four (S4)", text_same,
                  all(same.values())),
            Claim(15, "GAN beside a VAE with 6", "VAE in density (quality), GAN in recall (variety)", text_few,
                  few["recall"] and not few["density"]),
        ]  # fmt: skip
    return found, draw(test, again, fakes, scores)


def draw(test, again, fakes, scores):
    """The measures, the samples of all, and reconstructions."""
    title = "A VAE-GAN samples like a GAN and rebuilds nearly like a VAE (1,200 digits to learn, 597 to score with)"
    fig, axes = claims.figure(title, columns=2 + len(fakes), width=4 + 2.6 * len(fakes), height=3.4)
    show = lambda ax, x: ax.imshow(plots._image_grid(load("digits"), x, 600, most=49), cmap="gray")
    colors = (plots.P_G, plots.FAKE, plots.REAL, plots.GREY)
    for (name, score), color, marker in zip(scores.items(), colors, "|oDs", strict=False):
        axes[0].plot([score[k] for k in MEASURES], range(4), marker, color=color, ms=18 if marker == "|" else 7, mew=2,
                     zorder=3 if marker == "|" else 2, label=name)  # fmt: skip
    axes[0].set(yticks=range(4), yticklabels=MEASURES, ylim=(3.5, -1.7), xlabel="right is better")
    axes[0].legend(frameon=False, fontsize=8.5, ncols=2, loc="upper right", columnspacing=0.5, handletextpad=0)
    for y in range(4):
        axes[0].axhline(y, color=plots.GREY, lw=0.4, zorder=0)
    for ax, (name, x) in zip(axes[1:], fakes.items(), strict=False):
        show(ax, x)
        ax.set_xlabel(f"samples of the {name}")
    pairs = np.stack([test[:28].reshape(4, 7, 64), again[:28].reshape(4, 7, 64)], axis=1)[:3].reshape(-1, 64)
    show(axes[-1], pairs)
    axes[-1].set_xlabel("VAE-GAN rebuilds held-out digits:\nabove each row the originals")
    for ax in axes[1:]:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return fig


if __name__ == "__main__":
    claims.main(run)
