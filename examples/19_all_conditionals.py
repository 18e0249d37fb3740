"""One network for every conditional p(x_S | x_notS): G and D take the mask, and G fills in whatever is missing.

Source: Goodfellow et al. 2014, section 7, conclusion 3: "approximately model all conditionals p(x_S | x_notS), where S
is a subset of the indices of x, by training a family of conditional models that share parameters". ``MaskedGAN`` is
that family: G(z, mask·x, mask) fills in, D(x, mask) judges. A Gaussian's conditionals are known, and compared with the
learnt ones. Of digits one half is erased, and a classifier that has seen only real digits reads what G made of them;
for each half it must read the true digit more often than with one and the same fill in all, the best of 211, chosen
with the held-out labels: a completion has to follow from what is left.
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
R = np.array([[1, 0.5, -0.25], [0.5, 1, -0.5], [-0.25, -0.5, 1]])  # the correlations: Σ in standard deviations
GAUSSIAN = dict(  # nearly linear layers, as the conditional means are; R1, a fast D and large batches keep G still
    generator="32, leaky_relu 0.8, 32, leaky_relu 0.8", discriminator="64, leaky_relu 0.2, 64, leaky_relu 0.2",
    latent_dim=3, init_D="he", optimizer="adam", momentum=0.0, lr=0.0008, lr_D=0.006, lr_end=0.1, r1=1.0, r1_end=0.2,
)  # fmt: skip
DIGITS = dict(
    generator="192, relu, 192, relu", discriminator="192, leaky_relu 0.2, 192, leaky_relu 0.2", latent_dim=8,
    init_D="he", optimizer="adam", momentum=0.0, lr=0.002, lr_D=0.004, lr_end=0.05, r1=0.3, r1_end=0.1, batch_size=96,
)  # fmt: skip
COLORS = (plots.GREY, plots.REAL, plots.P_G)  # by how many numbers are given
COLUMN, ROW = np.arange(64) % 8, np.arange(64) // 8
HALVES = {"left": COLUMN < 4, "right": COLUMN >= 4, "top": ROW < 4, "bottom": ROW >= 4}  # what is given


def conditional(given, x):
    """(mean (n, missing), covariance) of what is missing, given the rest of x (n, columns); in standard deviations."""
    S, missing = R[: len(given), : len(given)], ~given
    B = S[np.ix_(missing, given)] @ np.linalg.inv(S[np.ix_(given, given)])
    return x[:, given] @ B.T, S[np.ix_(missing, missing)] - B @ S[np.ix_(given, missing)]


def gaussian(seed, columns, steps, batch_size, rows=100, draws=8000):
    """{mask: a dict}, in standard deviations: "mean", "true_mean", "variances" (rows, missing) at each row; "S",
    "true_S", the first of the draws around their mean, over all rows; "draws" (draws, missing) at the "row" "shown".
    """
    m, sd, factor = MEAN[:columns], SD[:columns], np.linalg.cholesky(R[:columns, :columns])
    draw = lambda n, rng, xp: (rng.standard_normal((n, columns)) @ factor.T * sd + m).astype(np.float32)
    data = Dataset("gaussian", columns, draw=draw, shift=m, scale=sd)
    masks = np.array(list(itertools.product((False, True), repeat=columns))[:-1])
    often = 1.6 ** masks.sum(1)  # the more is given, the narrower is what is left, and the harder to learn
    draw_masks = lambda rng, n, data: masks[rng.choice(len(masks), n, p=often / often.sum())]
    gan, found = MaskedGAN(draw_masks, **GAUSSIAN, steps=steps, batch_size=batch_size, seed=seed).build(data), {}
    for net, larger in ((gan.G, 8), (gan.D, 3)):  # the masks' weights: then the kinks lie between masks, not within x
        net.params.layers[0][0][-columns:] *= larger
    total, late = np.zeros_like(gan.G.theta), steps // 3  # the mean of the last third, longer than GAN's own average
    while gan.step < steps:
        gan.train_step()
        total += gan.G.theta * (gan.step > steps - late)
    gan.averaged.flat[...] = total / late
    x = data.real_samples(rows, seed + 1)
    shown = x[:, 0].argsort()[rows * 9 // 10]  # its first column is high, so that it says something of the second
    for given in masks:
        filled = data.normalise(gan.complete(x.repeat(draws, axis=0), given, seed))[:, ~given].reshape(rows, draws, -1)
        mean = filled.mean(1, dtype=np.float64)
        rest = (filled - mean[:, None]).reshape(rows * draws, -1)
        true_mean, true_S = conditional(given, data.normalise(x))
        found[tuple(given)] = dict(
            mean=mean, true_mean=true_mean, S=rest.T @ rest / len(rest), true_S=true_S, sd=true_S.diagonal() ** 0.5,
            variances=filled.var(1, dtype=np.float64), shown=shown, row=data.normalise(x[shown]), draws=filled[shown],
        )  # fmt: skip
    return found


def digits(seed, steps, candidates, draws=10):
    """1,200 digits to train on, 597 others completed: (held-out digits, judge's accuracy on them, {half: a dict})."""
    data, order = load("digits"), np.random.default_rng(seed).permutation(1797)
    X, labels = data.X[order], data.labels[order]
    train, test, test_labels, found = X[:1200], X[1200:], labels[1200:], {}
    judge = Classifier("dropout 0.85, 128, relu, dropout 0.7", steps=1500, seed=seed).fit(train, labels[:1200])
    masks = lambda rng, n, data: np.stack(list(HALVES.values()))[rng.integers(0, 4, n)]
    gan = MaskedGAN(masks, **DIGITS, steps=steps, seed=seed).fit(from_array(train, image_shape=(8, 8)))
    images = [train.mean(0), *(train[labels[:1200] == c].mean(0) for c in range(10)), *train[:candidates]]
    for name, given in HALVES.items():
        filled = np.stack([gan.complete(test, given, seed=i) for i in range(draws)])
        alike = np.square(test[:, None, given] - train[None, :, given]).sum(2).argsort(1)[:, :10]
        found[name] = dict(
            filled=filled,
            kept=(filled[:, :, given] == test[:, given]).all(),
            spread=filled[:, :, ~given].std(0).mean(1),  # of each digit, over its completions
            doubt=train[alike][:, :, ~given].std(1).mean(1),  # over the ten real digits that look most like it
            agree=np.mean([judge.accuracy(x, test_labels) for x in filled]),
            single=max(judge.accuracy(np.where(given, test, image), test_labels) for image in images),
        )  # fmt: skip
    return test, judge.accuracy(test, test_labels), found


def run(seed=0, quick=False):
    """A Gaussian of three columns and all its seven masks; digits of which one half is left."""
    found = gaussian(seed, *((2, 3000, 256, 100, 4000) if quick else (3, 9000, 1024)))
    off_mean = max(np.sqrt(np.square(f["mean"] - f["true_mean"]).mean(0)).max() for f in found.values())
    off_S = max((abs(f["S"] - f["true_S"]) / np.outer(f["sd"], f["sd"])).max() for f in found.values())
    off_v = max(np.sqrt(np.square(f["variances"] / f["sd"] ** 2 - 1).mean(0)).max() for f in found.values())
    test, accuracy, halves = digits(seed, *((100, 20) if quick else (4000, 200)))
    kept, least = all(h["kept"] for h in halves.values()), min(h["spread"].min() for h in halves.values())
    spreads = {name: h["spread"][h["doubt"].argsort()] for name, h in halves.items()}  # the least doubtful first
    ratios = {name: s[-(len(s) // 4) :].mean() / s[: len(s) // 4].mean() for name, s in spreads.items()}
    each = lambda values: ", ".join(f"{name} {v:.2f}" for name, v in values.items())
    agree, single = ({name: h[key] for name, h in halves.items()} for key in ("agree", "single"))
    result = [
        claims.below(22, f"Gaussian, {len(found)} masks: conditional means, the worst", off_mean, 0.05,
                     "rms over x, in standard deviations of the column"),
        claims.below(22, "covariances, all x together, the worst", off_S, 0.05, "over √(S_ii S_jj), the true ones"),
        claims.below(22, "variances at each x, the worst column", off_v, 0.1, "relative, rms over x"),
        Claim(22, "digits: the given half comes back", "bit for bit", "it does" if kept else "it does not", kept),
        Claim(22, "completions of one digit differ", "s.d. of a pixel > 0.005", f"at least {least:.3f}", least > 0.005),
        Claim(22, "and more where real digits with such a half differ more", "most over least doubtful fourth: > 1",
              each(ratios), min(ratios.values()) > 1),
        Claim(22, "a classifier reads the true digit in a completion",
              "for each half more often than with the best single fill",
              f"{each(agree)}; single {each(single)}; whole digits {accuracy:.2f}",
              all(agree[name] > single[name] for name in HALVES)),
    ]  # fmt: skip
    return result[: 5 if quick else None], draw_figure(found, test, halves)


def draw_figure(found, test, halves):
    """Completions beside the truth; a Gaussian's learnt conditionals on the true ones."""
    fig, axes = claims.figure("One network fills in whatever is missing", rows=2, columns=2, width=9, height=8.4)
    draw_completions(axes[0, 0], ("left", "right"), test, halves)
    draw_completions(axes[0, 1], ("top", "bottom"), test, halves)
    draw_densities(axes[1, 0], found)
    ax, signs = axes[1, 1], {"mean": dict(marker=".", ms=3), "S": dict(marker="o", ms=9, mfc="none", mew=1.5)}
    for (given, f), (name, sign) in itertools.product(found.items(), signs.items()):
        ax.plot(f[f"true_{name}"].ravel(), f[name].ravel(), ls="", color=COLORS[sum(given)], **sign)
    ax.axline((0, 0), slope=1, color=plots.INK, lw=0.8, zorder=0)
    ax.set(xlabel="true, in standard deviations", ylabel="learnt: right on the line", aspect="equal")
    ax.set_title(f"{len(found)} masks, 100 rows: means (dots), covariances (rings)", loc="left", fontsize=9)
    for k, color in enumerate(COLORS[: len(given)]):
        ax.annotate(f"{k} of {len(given)} given", (0.04, 0.93 - 0.07 * k), xycoords="axes fraction", color=color)
    return fig


def draw_completions(ax, names, test, halves):
    """A row for each digit: the given half, nothing beside it; completions, what is invented in orange; the truth."""
    invented = lambda x: np.array([0.25, 0.1, 0]) + x[:, None] * np.array([0.75, 0.66, 0.5])
    tile = lambda x: np.pad(x.reshape(8, 8, 3), ((1, 1), (1, 1), (0, 0)), constant_values=1)
    rows = []
    for name, i in itertools.product(names, range(4)):
        given, truth = HALVES[name][:, None], np.repeat(test[i][:, None], 3, axis=1)
        filled = [np.where(given, truth, invented(x)) for x in halves[name]["filled"][:6, i]]
        rows.append(np.concatenate([tile(x) for x in (np.where(given, truth, 1), *filled, truth)], axis=1))
    ax.imshow(np.concatenate(rows))
    ax.set(xticks=[5, 40, 75], yticks=[20, 60], yticklabels=[f"{name}\nhalf" for name in names])
    ax.set_xticklabels(["given", "the rest invented, six times", "truth"])
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.get_xticklabels()[1].set_color(plots.FAKE)
    ax.spines[:].set_visible(False)


def draw_densities(ax, found):
    """p(x₂ | more and more of one row): histograms of the draws, and the true densities as lines."""
    n, grid = len(next(iter(found))), np.linspace(-3, 3, 200)
    for k, given in enumerate(dict.fromkeys(tuple(i < k and i != 1 for i in range(n)) for k in (0, 1, n))):
        f, base, j = found[given], -0.65 * k, 1 - given[0]  # j: its place among the missing columns
        ax.hist(f["draws"][:, j], 50, density=True, bottom=base, histtype="stepfilled", color=COLORS[k], alpha=0.45)
        mean, v = f["true_mean"][f["shown"], j], f["true_S"][j, j]
        ax.plot(grid, base + np.exp(-((grid - mean) ** 2) / v / 2) / (2 * np.pi * v) ** 0.5, color=plots.INK)
        name = "\n".join(f"$x_{i + 1}$ = {f['row'][i]:.1f}" for i in range(n) if given[i]) or "nothing"
        ax.text(-3, base + 0.1, f"{name}\ngiven", color=COLORS[k], fontsize=9)
    ax.set(yticks=[], xlim=(-3.4, 3.4), xlabel=f"$x_2$ in its s.d.: {len(f['draws']):,} draws; lines: the truth")


if __name__ == "__main__":
    claims.main(run)
