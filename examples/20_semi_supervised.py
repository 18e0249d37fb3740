"""With few labels, a classifier does better if it is also the discriminator of a GAN that sees images without labels.

Source: S3 and Goodfellow et al. 2014, conclusion 4: "features from the discriminator or inference net could improve
performance of classifiers when limited labeled data is available". D's or E's hidden layers (inference.py), trained
without labels, under a new last layer; or D with the K classes as logits l (Salimans et al. 2016, section 5), on both:
D(x) = Σ exp l / (Σ exp l + 1), so D's own logit is s = log Σ exp l, ds/dl = softmax(l). Settings, also from scratch,
were chosen on 300 of 1,200 digits; 597 others test. Gains at 100, 600, 1,000 labels, seeds 0 to 4:
K + 1 classes     .036 ± .015   .014 ± .004   .009 ± .005   labelled rows only  .004 ± .003  .010 ± .004  .008 ± .005
D's, trained on   .010 ± .004   .004 ± .003   .000 ± .007   E's   .005 ± .005   .002 ± .004   .002 ± .005
D's, fixed       -.002 ± .011  -.015 ± .006  -.021 ± .003   E's  -.041 ± .007  -.023 ± .010  -.028 ± .005
So with 600 labels a GAN of the labelled rows alone has most of the gain; images without labels add .003 ± .001 to it.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, losses, plots
from minigan.claims import Claim
from minigan.classifier import Classifier
from minigan.data import from_array
from minigan.inference import Encoder
from minigan.mlp import MLP, parse_layers
from minigan.optim import SGD

HIDDEN = "128, leaky_relu 0.2, 128, leaky_relu 0.2"  # of D, E and every classifier
DROPOUT = "dropout 0.9, 128, leaky_relu 0.2, dropout 0.7, 128, leaky_relu 0.2, dropout 0.7"  # the same, while fitted
TRAIN, STEPS, WEIGHT = 1200, 2000, 3.0  # rows; steps of a GAN; of the cross-entropy beside D's own loss
DRAWS = {100: 2, 600: 3, 1000: 1}  # of the labelled rows, by their number
SCRATCH, BOTH, ALONE = "from scratch", "D of K + 1 classes", "K + 1, labelled rows only"
FIXED_D, TUNED_D, FIXED_E, TUNED_E = (f"{net}'s features, {how}" for net in "DE" for how in ("fixed", "trained on"))
COLORS = {SCRATCH: plots.INK, FIXED_D: "#56B4E9", TUNED_D: plots.REAL, FIXED_E: "#CC79A7", TUNED_E: plots.P_G,
          ALONE: plots.GREY, BOTH: plots.FAKE}  # fmt: skip
LEAST = {100: 0.01, 600: 0.0}  # gain of K + 1 classes in accuracy, mean of the draws


class LogSumExp:
    """The layer s = log Σ exp l: (n, K) -> (n, 1), without weights; the methods are those of layers.py."""

    shapes, n_out = (), 1

    def __init__(self, n_in):
        self.n_in = n_in

    def buffers(self, n, dtype):
        widths = dict(out=1, p=self.n_in, dx=self.n_in, tangent=1)
        return SimpleNamespace(**{name: np.empty((n, width), dtype) for name, width in widths.items()})

    def forward(self, x, p, c, rng=None):
        log_p = losses.log_softmax(x)
        np.exp(log_p, out=c.p)
        return np.subtract(x[:, :1], log_p[:, :1], out=c.out)

    def backward(self, dout, x, p, c, g=None, need_dx=True):
        return np.multiply(dout, c.p, out=c.dx)

    def tangent(self, xdot, p, c):
        return np.sum(c.p * xdot, axis=1, keepdims=True, out=c.tangent)

    def backward_tangent(self, e, delta, x, xdot, p, c, g, scratch, need_e):
        """R1's way down: the derivative of Σ δ p·ẋ in l is δ p (ẋ - p·ẋ); nothing above, so e is None."""
        return delta * c.p * (xdot - c.tangent)


class SemiSupervisedGAN(GAN):
    """A GAN whose D also names the class: to D's loss comes WEIGHT times the cross-entropy of labelled rows."""

    def label(self, X, labels):
        """Draw D anew over 10 logits; X (n, features) are the rows with a label, labels (n,) from 0 to 9."""
        m, self.X, self.targets = self.m, X, labels
        self.D = MLP([*parse_layers(self.discriminator, self.data.features, 10), LogSumExp(10)])
        self.D.initialise(self.rng.weights, self.init_D)
        self.optimizer_D, self.grad_D, self.grad_few = SGD(self.D.theta), self.D.vector(), self.D.vector()
        self.tape_DG, self.tape_D = self.D.tape(m), self.D.tape(2 * m)
        self.tape_D_real, self.tape_D_fake = self.tape_D[:m], self.tape_D[m:]
        self.labels = self.tape_D_real.x[:, self.data.features :]  # a conditional GAN's: no columns here
        self.penalty, self.net = losses.GradientPenalty(self.D, m), MLP(self.D.layers[:-1])  # net: as far as the logits
        self.net.params, self.grad_logits = (
            SimpleNamespace(flat=v.flat, layers=v.layers[:-1]) for v in (self.D.params, self.grad_few))  # fmt: skip
        self.tape_few, self.dlogits_few = self.net.tape(min(m, len(X))), np.empty((min(m, len(X)), 10), np.float32)
        return self

    def discriminator_gradient(self, x_real=None):
        super().discriminator_gradient(x_real)
        rows = self.rng.evaluation.permutation(len(self.X))[: len(self.tape_few.x)]
        logits = self.net.forward(self.X[rows], self.tape_few)
        losses.cross_entropy_gradient(logits, self.targets[rows], self.dlogits_few)
        self.dlogits_few *= WEIGHT
        self.net.backward(self.dlogits_few, self.tape_few, self.grad_logits, need_dx=False)
        self.grad_D.flat += self.grad_few.flat

    def accuracy(self, x, labels):  # as Classifier's
        return float((self._in_blocks(self.net, x).argmax(1) == labels).mean())


def train(X, labels, rows, gan, E, seed, steps, methods=tuple(COLORS)):
    """Each method's classifier, from the labels of these rows of X, and no others; gan and E have seen all of X."""
    few, tune = (X[rows], labels[rows]), 0.1 if len(rows) < 600 else 1
    fit = lambda start, tune, hidden=DROPOUT, steps=steps, lr=0.004: Classifier(
        hidden, batch_size=64, seed=seed, steps=steps, lr=lr, tune=tune).fit(*few, start=start)  # fmt: skip
    fixed = lambda start: fit(start, 0, HIDDEN, min(steps, 300), 0.01)
    make = {SCRATCH: lambda: fit(None, 1), FIXED_D: lambda: fixed(gan.D), TUNED_D: lambda: fit(gan.D, tune),
            FIXED_E: lambda: fixed(E), TUNED_E: lambda: fit(E, tune), BOTH: lambda: k_plus_1(X, few, gan, seed, steps),
            ALONE: lambda: k_plus_1(few[0], few, gan, seed, steps)}  # fmt: skip
    return {name: make[name]() for name in methods}


def k_plus_1(X, few, gan, seed, steps):
    """A GAN with the options of this one, on images X (n, 64), whose D also reads few, (rows, their labels)."""
    options = gan.options() | {"seed": seed, "steps": steps}
    both = SemiSupervisedGAN(**options).build(from_array(X.reshape(-1, 8, 8))).label(*few)
    for _ in range(steps):
        both.train_step()
    return both


def run(seed=0, quick=False):
    """One GAN and one E without labels, and every method over draws of the labelled rows."""
    data, order = load("digits"), np.random.default_rng(2014).permutation(1797)  # the same test rows for every seed
    (X, labels), test = ((data.X[o], data.labels[o]) for o in (order[:TRAIN], order[TRAIN:]))
    draws, steps, methods = ({100: 1}, 1300, (SCRATCH, BOTH)) if quick else (DRAWS, STEPS, tuple(COLORS))
    gan = GAN(generator="128, relu, 128, relu", discriminator=HIDDEN, lr=0.1, r1=0.03, init_D="he", average=0.0,
              steps=1 if quick else steps, seed=seed).fit(from_array(X.reshape(-1, 8, 8)))  # fmt: skip
    E = Encoder(gan, layers=HIDDEN, steps=1 if quick else 1500, batch_size=64, lr=0.002, weight=20.0, seed=seed).fit().E
    scores = {(name, n): [] for n in draws for name in methods}
    for n, i in ((n, i) for n, count in draws.items() for i in range(count)):
        rows = np.random.default_rng([seed, n, i]).permutation(TRAIN)[:n]
        for name, classifier in train(X, labels, rows, gan, E, 100 * seed + i, steps, methods).items():
            scores[name, n].append(classifier.accuracy(*test))
    return judge({key: np.array(v) for key, v in scores.items()})


def judge(scores):
    """The claims, and the picture, from scores[method, number of labels] (draws,)."""
    gains = {key: v - scores[SCRATCH, key[1]] for key, v in scores.items() if key[0] != SCRATCH}
    mean, found = {key: g.mean() for key, g in gains.items()}, []
    for n, least in [(n, least) for n, least in LEAST.items() if (BOTH, n) in gains]:
        g = gains[BOTH, n]
        sd = g.std(ddof=1) if len(g) > 1 else 0
        found += [Claim(23, f"{n} labels, {BOTH}: gain over the same net from scratch", f"> {least:g}, and > the sd "
                        "of draws", f"{g.mean():+.3f} ± {sd:.3f}", g.mean() > max(least, sd))]  # fmt: skip
    if (BOTH, 600) in gains:
        (few, many), d = (mean[BOTH, n] - mean[ALONE, n] for n in (100, 600)), mean[TUNED_D, 100]
        claim = f"{BOTH}: with more labels the images without one add less"
        found += [Claim(23, f"100 labels, {TUNED_D}: gain over the same net from scratch", "> 0", f"{d:+.3f}", d > 0),
                  Claim(23, claim, "600 < 100 labels", f"{many:+.3f} < {few:+.3f}", many < few)]  # fmt: skip
    return found, draw(scores, gains)


def draw(scores, gains):
    """A panel for each number of labels: what every method gains over the same network from scratch."""
    counts, names = sorted({n for _, n in gains}), list(dict.fromkeys(name for name, _ in gains))
    title = "What digits without labels add: most where labels are few, to a D of K + 1 classes that learns from both"
    fig, axes = claims.figure(title, 1, len(counts), 12.5, 3.9, sharex=True, sharey=True, squeeze=False)
    for ax, n in zip(axes[0], counts, strict=True):
        for y, name in enumerate(names):
            g = gains[name, n]
            ax.barh(y, g.mean(), 0.62, color=COLORS[name], alpha=0.75)
            ax.plot(g, np.full(len(g), y), "o", ms=4.5, color=plots.INK, mfc="none")
            sd = f" ± {g.std(ddof=1):.3f}" if len(g) > 1 else ""
            text = f"{g.mean():+.3f}{sd}\nto {scores[name, n].mean():.3f}"
            ax.text(1.01, y, text, va="center", fontsize=8.5, transform=ax.get_yaxis_transform())
        ax.axvline(0, color=plots.INK, lw=1)
        ax.set_yticks(range(len(names)), names)
        ax.set_title(f"{n:,} of 1,200 have a label\n{SCRATCH}: {scores[SCRATCH, n].mean():.3f}", loc="left", size=9)
        ax.locator_params(axis="x", nbins=5)
    fig.supxlabel("gain in accuracy on 597 other digits over the same net from scratch; circles: draws", size=9)
    return fig


if __name__ == "__main__":
    claims.main(run)
