"""The training rows must stand for the target: with few of them a GAN learns them by heart, and how to catch it.

Source: S3, section 1 (a warning: "a potential assumption is that the training data do generalize the target data").
Nothing in Algorithm 1 forbids G to give the training rows back; p_data is known through them alone. The test: two sets
of real rows of equal size, one to train on and one held out. A sample that is nothing's copy is as likely to lie nearer
to the one as to the other, so the share that lies nearer to the training rows is one half; for copies it is 1. Beside
it, what a person should look at: samples, and the training row nearest to each.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, plots
from minigan.claims import Claim
from minigan.data import from_array
from minigan.metrics import nearest_neighbours

CAUGHT = 0.75  # half-way between nothing and everything by heart
OPTIONS = dict(generator="192, relu, 192, relu", discriminator="192, leaky_relu 0.2, 192, leaky_relu 0.2", lr=0.1,
               r1=0.03, init_D="he", backend="numpy")  # fmt: skip


def distances(x, train, held_out):
    """Of each sample to its nearest training and its nearest held-out row, two (n,), and which training row it is."""
    index, near = nearest_neighbours(x, train)
    return near, nearest_neighbours(x, held_out)[1], index


def run(seed=0, quick=False):
    """Fresh rows, a kernel estimate on 100 rows, and GANs on 100 and on 599 rows."""
    rng = np.random.default_rng(seed)
    X = load("digits").X[rng.permutation(1797)]
    train, held_out, fresh = X[:599], X[599:1198], X[1198:]
    few, few_held_out = train[:100], held_out[:100]
    copies = few[rng.integers(0, 100, 1000)] + 0.05 * rng.standard_normal((1000, 64))
    cases = {"fresh digits": (fresh, train, held_out), "100 rows with noise": (copies, few, few_held_out)}
    if not quick:
        for n in (599, 100):
            gan = GAN(**OPTIONS, steps=6000, seed=seed).fit(from_array(train[:n], image_shape=(8, 8)))
            cases[f"GAN on {n} rows"] = gan.sample(1000, seed), train[:n], held_out[:n]
    found_near = {name: distances(*case) for name, case in cases.items()}
    share = {name: float((near < far).mean()) for name, (near, far, _) in found_near.items()}
    text = {name: f"{share[name]:.2f}; median distance {np.median(near):.2f}, to held-out rows {np.median(far):.2f}"
            for name, (near, far, _) in found_near.items()}  # fmt: skip
    found = [
        Claim(19, "fresh digits lie as near to training as to held-out rows", "share 0.5 ± 0.08 (3 s.d. over splits)",
              text["fresh digits"], abs(share["fresh digits"] - 0.5) < 0.08),
        Claim(19, "100 rows with noise, a model that only remembers, is caught", f"share above {CAUGHT}",
              text["100 rows with noise"], share["100 rows with noise"] > CAUGHT),
    ]  # fmt: skip
    if not quick:
        found += [
            Claim(19, "a GAN on 100 rows is caught: they do not stand for the target", f"share above {CAUGHT}",
                  text["GAN on 100 rows"], share["GAN on 100 rows"] > CAUGHT),
            Claim(19, "the same GAN on 599 rows is not, though some is by heart",
                  f"share below {CAUGHT}, above that of fresh digits", text["GAN on 599 rows"],
                  share["fresh digits"] < share["GAN on 599 rows"] < CAUGHT),
        ]  # fmt: skip
    return found, draw(cases, found_near, share)


def draw(cases, found_near, share):
    """Nearest distances of each case, and samples beside the training row nearest to each."""
    title = "With few training rows a GAN gives them back: its samples lie nearer to them than to held-out digits"
    fig, axes = claims.figure(title, rows=2, columns=len(cases), width=3.6 * len(cases), height=6.6,
                              height_ratios=(1.25, 1))  # fmt: skip
    for ax, (name, (near, far, _)) in zip(axes[0], found_near.items(), strict=True):
        ax.plot([0, 3], [0, 3], color=plots.GREY, lw=0.8, ls=":")
        ax.scatter(near[:500], far[:500], s=5, color=plots.FAKE if share[name] > CAUGHT else plots.REAL, alpha=0.6)
        ax.text(0.05, 2.75, f"{share[name]:.0%} nearer to training", fontsize=9.5)
        ax.set_title(name + (": caught" if share[name] > CAUGHT else ""), fontsize=11)
        ax.set(xlim=(0, 3), ylim=(0, 3), aspect="equal", xlabel="distance to the nearest training row",
               ylabel="to the nearest held-out row")  # fmt: skip
    for ax, (name, (x, train, _)) in zip(axes[1], cases.items(), strict=True):
        pairs = np.stack([x[:18].reshape(3, 6, 64), train[found_near[name][2][:18]].reshape(3, 6, 64)], axis=1)
        ax.imshow(plots._image_grid(load("digits"), np.clip(pairs.reshape(36, 64), 0, 1), 600), cmap="gray")
        ax.set(xticks=[], yticks=[], xlabel="rows 1, 3, 5: samples; below each\nthe training row nearest to it")
        ax.spines[:].set_visible(False)
    return fig


if __name__ == "__main__":
    claims.main(run)
