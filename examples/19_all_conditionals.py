"""One network for every conditional p(x_S | x_notS): G and D take the mask, and G fills in whatever is missing.

Source: Goodfellow et al. 2014, section 7, conclusion 3: "approximately model all conditionals p(x_S | x_notS), where S
is a subset of the indices of x, by training a family of conditional models that share parameters". ``MaskedGAN`` is
that family: G(z, mask·x, mask) fills in, D(x, mask) judges. Of a Gaussian every conditional is known, and the learnt
ones are compared with them. Of digits one half is erased, and a classifier that has seen only real digits reads what
G made of them; it must read the true digit more often than with one and the same half pasted into all of them, the
best of 211 candidates, chosen with the held-out labels: a completion has to follow from what is left.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import claims, load, plots
from minigan.claims import Claim
from minigan.classifier import Classifier
from minigan.data import Dataset, from_array
from minigan.masked import MaskedGAN

MEAN, SD = np.array([1.0, -1.0, 0.5]), np.array([1.0, 2.0, 0.5])
COVARIANCE = np.array([[1, 0.5, -0.25], [0.5, 1, -0.5], [-0.25, -0.5, 1]]) * np.outer(SD, SD)
GAUSSIAN = dict(  # nearly linear layers, as the conditional means are; R1, a fast D and large batches keep G still
    generator="32, leaky_relu 0.6, 32, leaky_relu 0.6", discriminator="32, leaky_relu 0.2, 32, leaky_relu 0.2",
    latent_dim=3, init_D="he", optimizer="adam", momentum=0.0, lr=0.0006, lr_D=0.006, lr_end=0.05, r1=1.0,
    average=0.9995, batch_size=1024,
)  # fmt: skip
DIGITS = dict(
    generator="192, relu, 192, relu", discriminator="192, leaky_relu 0.2, 192, leaky_relu 0.2", latent_dim=8,
    init_D="he", optimizer="adam", momentum=0.0, lr=0.0005, lr_D=0.001, lr_end=0.05, r1=0.3, r1_end=0.1, batch_size=96,
)  # fmt: skip
COLUMN, ROW = np.arange(64) % 8, np.arange(64) // 8
HALVES = {"left": COLUMN < 4, "right": COLUMN >= 4, "top": ROW < 4, "bottom": ROW >= 4}  # what is given


def conditional(given, x):
    """(mean (n, missing), covariance) of the missing columns of the Gaussian, given the others of x (n, columns)."""
    n = len(given)
    mean, S, missing = MEAN[:n], COVARIANCE[:n, :n], ~given
    B = S[np.ix_(missing, given)] @ np.linalg.inv(S[np.ix_(given, given)])
    return mean[missing] + (x - mean)[:, given] @ B.T, S[np.ix_(missing, missing)] - B @ S[np.ix_(given, missing)]


def gaussian(seed, columns, steps, rows=100, draws=4000):
    """{mask: (learnt means, true means (rows, missing), learnt covariance, true covariance)}, in standard deviations.

    The learnt covariance is that of the draws around their mean at each of the rows, over all rows.
    """
    factor, sd = np.linalg.cholesky(COVARIANCE[:columns, :columns]), SD[:columns]
    draw = lambda n, rng, xp: (rng.standard_normal((n, columns)) @ factor.T + MEAN[:columns]).astype(np.float32)
    data = Dataset("gaussian", columns, draw=draw, shift=MEAN[:columns], scale=sd)
    masks = np.array(list(itertools.product((False, True), repeat=columns))[:-1])
    often = 2.0 ** masks.sum(1)  # the more is given, the narrower is what is left, and the harder to learn
    draw_masks = lambda rng, n, data: masks[rng.choice(len(masks), n, p=often / often.sum())]
    gan, found = MaskedGAN(draw_masks, **GAUSSIAN, steps=steps, seed=seed).build(data), {}
    for net, larger in ((gan.G, 5), (gan.D, 3)):  # the masks' weights: then the kinks lie between masks, not within x
        net.params.layers[0][0][-columns:] *= larger
    while gan.step < steps:
        gan.train_step()
    x = data.real_samples(rows, seed + 1)
    for given in masks:
        mean, S = conditional(given, x)
        filled = gan.complete(np.repeat(x, draws, axis=0), given, seed)[:, ~given].reshape(rows, draws, -1)
        learnt = filled.mean(1, dtype=np.float64)
        rest = (filled - learnt[:, None]).reshape(rows * draws, -1)
        missing = sd[~given]
        squares = np.outer(missing, missing)
        found[tuple(given)] = learnt / missing, mean / missing, rest.T @ rest / len(rest) / squares, S / squares
    return found


def digits(seed, steps, candidates, draws=10):
    """1,200 digits to train on, 597 others completed: (held-out digits, judge's accuracy on them, {half: a dict})."""
    data, order = load("digits"), np.random.default_rng(seed).permutation(1797)
    X, labels = data.X[order], data.labels[order]
    train, test, test_labels = X[:1200], X[1200:], labels[1200:]
    judge = Classifier("dropout 0.85, 128, relu, dropout 0.7", steps=1500, seed=seed).fit(train, labels[:1200])
    read = lambda x: judge.accuracy(x, test_labels)
    halves = np.stack(list(HALVES.values()))
    masks = lambda rng, n, data: halves[rng.integers(0, 4, n)]
    gan = MaskedGAN(masks, **DIGITS, steps=steps, seed=seed).fit(from_array(train, image_shape=(8, 8)))
    images = [train.mean(0), *(train[labels[:1200] == c].mean(0) for c in range(10)), *train[:candidates]]
    found = {}
    for name, given in HALVES.items():
        filled = np.stack([gan.complete(test, given, seed=i) for i in range(draws)])
        alike = np.square(test[:, None, given] - train[None, :, given]).sum(2).argsort(1)[:, :10]
        found[name] = dict(
            filled=filled,
            kept=(filled[:, :, given] == test[:, given]).all(),
            spread=filled[:, :, ~given].std(0).mean(1),  # of each digit, over its completions
            doubt=train[alike][:, :, ~given].std(1).mean(1),  # over the ten real digits that look most like it
            agree=np.mean([read(x) for x in filled]),
            single=max(read(np.where(given, test, image)) for image in images),
        )  # fmt: skip
    return test, judge.accuracy(test, test_labels), found


def run(seed=0, quick=False):
    """A Gaussian of three columns and all its seven masks; digits of which one half is left."""
    found = gaussian(seed, 2 if quick else 3, 1600 if quick else 9000)
    off_mean = max(np.sqrt(np.square(a - b).mean(0)).max() for a, b, _, _ in found.values())
    off_S = max((abs(a - b) / np.sqrt(np.outer(b.diagonal(), b.diagonal()))).max() for _, _, a, b in found.values())
    test, accuracy, halves = digits(seed, *((100, 20) if quick else (4500, 200)))
    kept = all(h["kept"] for h in halves.values())
    least = min(h["spread"].min() for h in halves.values())
    ratios = {}
    for name, h in halves.items():
        order, n = h["doubt"].argsort(), len(test) // 4
        ratios[name] = h["spread"][order[-n:]].mean() / h["spread"][order[:n]].mean()
    each = lambda values: ", ".join(f"{name} {v:.2f}" for name, v in values.items())
    agree, single = ({name: h[key] for name, h in halves.items()} for key in ("agree", "single"))
    result = [
        claims.below(22, f"Gaussian, {len(found)} masks: conditional means, the worst", off_mean, 0.05,
                     "rms over x, in standard deviations of the column"),
        claims.below(22, "conditional covariances, the worst entry", off_S, 0.05, "over √(S_ii S_jj) of the true S"),
        Claim(22, "digits: the given half comes back", "bit for bit", "it does" if kept else "it does not", kept),
        Claim(22, "completions of one digit differ", "standard deviation of a pixel > 0", f"at least {least:.3f}",
              least > 0),
    ]  # fmt: skip
    if not quick:
        result += [
            Claim(22, "and more where real digits with such a half differ more", "most over least doubtful fourth: > 1",
                  each(ratios), min(ratios.values()) > 1),
            Claim(22, "a classifier reads the true digit in a completion",
                  "over the four halves more often than with the best single fill",
                  f"{each(agree)}; single {each(single)}; whole digits {accuracy:.2f}",
                  sum(agree.values()) > sum(single.values())),
        ]  # fmt: skip
    return result, draw_figure(found, test, halves, agree, single)


def draw_figure(found, test, halves, agree, single):
    """Completions beside the truth; learnt against true means and covariances."""
    title = "One network that takes the mask gives every conditional: halves of digits completed, and a Gaussian's"
    fig, axes = claims.figure(title, columns=4, width=13, height=4, width_ratios=(1.5, 1.5, 1, 1))
    for ax, names in zip(axes[:2], (("left", "right"), ("top", "bottom")), strict=True):
        rows, pad = [], lambda x: np.pad(x.reshape(8, 8), 1, constant_values=0.35)
        for i, name in ((i, name) for name in names for i in range(4)):
            shown = [np.where(HALVES[name], test[i], 0.2), *halves[name]["filled"][:6, i], test[i]]
            rows.append(np.concatenate([pad(x) for x in shown], axis=1))
        ax.imshow(np.concatenate(rows), cmap="gray", vmin=0, vmax=1)
        ax.set(
            yticks=[20, 60], yticklabels=names, xticks=[4.5, 39.5, 74.5], xticklabels=["given", "completions", "truth"]
        )
        ax.set_ylabel("half that is given")
        ax.tick_params(length=0)
        for x in (10, 70):
            ax.axvline(x - 0.5, color=plots.FAKE, lw=1.5)
    for name, ax in (("mean", axes[2]), ("covariance", axes[3])):
        first = 0 if name == "mean" else 2
        for mask, values in found.items():
            color = (plots.P_G, plots.REAL, plots.FAKE)[sum(mask)]
            ax.plot(values[first + 1].ravel(), values[first].ravel(), ".", color=color, ms=4 if first == 0 else 9)
        low, high = ax.get_xlim()
        ax.plot([low, high], [low, high], color=plots.INK, lw=0.8, zorder=0)
        ax.set(xlabel=f"true conditional {name}", ylabel=f"learnt conditional {name}", aspect="equal")
    axes[2].set_title("Gaussian, in standard deviations", fontsize=9, loc="left")
    for k, color in enumerate((plots.P_G, plots.REAL, plots.FAKE)[: len(next(iter(found)))]):
        axes[3].text(0.04, 0.94 - 0.07 * k, f"{k} given", color=color, fontsize=9, transform=axes[3].transAxes)
    return fig


if __name__ == "__main__":
    claims.main(run)
