"""At the optimum p_g = p_data and D = 1/2 everywhere: V = -log 4, and G gets no signal.

Source: Goodfellow et al. 2014, section 4 and Figure 1 (the upper row, and the animation beside this picture);
S0, S3, S4. That D answers 1/2 is necessary, not sufficient: D may merely not have noticed. The test is a *fresh* D,
trained at length against the finished G: on rows it has not seen it must do hardly better than chance. (A judge that
is small or trained briefly passes anything; this one takes 3,000 steps.) "No valuable information for generator's
further training" (S0) is exact: if D is constant, whatever its value, dL_G/dθ_G = 0.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, metrics, plots
from minigan.claims import Claim
from minigan.data import Dataset

LOG_4 = np.log(4)
ADAM = dict(
    optimizer="adam", momentum=0.5, lr_end=0.01, batch_size=256, discriminator="64, leaky_relu 0.2, 64, leaky_relu 0.2"
)
OPTIONS = {
    "gaussian": dict(generator="64, relu, 64, relu", latent_dim=4, lr=0.001, lr_D=0.003, r1=0.02),
    "banana": dict(generator="64, relu, 64, relu", latent_dim=4, lr=0.0005, lr_D=0.003, r1=0.005),
}


def banana(n, rng, xp):
    """Two columns, x and x²/2 with noise 0.5: a bent Gaussian."""
    x = rng.standard_normal((n, 2), dtype=xp.float32)
    return xp.stack([x[:, 0], 0.5 * (x[:, 0] ** 2 + x[:, 1] - 1)], axis=1)


def train(name, steps, seed):
    """A trained GAN, and snapshots of it: step, samples, D on the picture's grid."""
    data = Dataset("banana", 2, draw=banana) if name == "banana" else load(name)
    gan, snapshots = GAN(**ADAM, **OPTIONS[name], steps=steps, report_every=20, seed=seed).build(data), []
    if name == "gaussian":  # start away from the data, with a D that has seen it, so that there is a way to go
        gan.G.theta[-1] -= 1.5
        for _ in range(300):
            gan.discriminator_step()
    wanted = {0, 30, 60, 100, 150, *range(200, steps + 1, 200)}
    while gan.step < steps:
        if gan.step in wanted and name == "gaussian":
            snapshots.append(snapshot(gan))
        gan.train_step()
        if gan.step % 20 == 0:
            gan.history.append(gan.report())
    return gan, [*snapshots, snapshot(gan)]


def snapshot(gan):
    """(step, 5000 samples, D over the frame of the picture)."""
    return gan.step, gan.sample(5000, seed=0), gan.probability(plots.surface_grid(gan.data))


def fresh_discriminator(gan, steps, seed, shift=0.0):
    """Held-out scores (real, generated) of a new D that was trained ``steps`` steps against the finished G.

    shift, in the network's units, is added to the last column that G gives: a mistake that D should notice.
    """
    options = ADAM | dict(generator=gan.generator, latent_dim=gan.latent_dim, lr=0.003, momentum=0.9, batch_size=512)
    judge = GAN(**options, r1=0.0, steps=steps, seed=seed + 1000)
    judge.build(gan.data)
    judge.G.theta[...] = gan.averaged.flat
    judge.G.theta[-1] += shift
    for judge.step in range(steps):
        judge.discriminator_step()
    real, fake = gan.data.real_samples(20_000, seed + 2000), judge.sample(20_000, seed + 3000, average=False)
    return judge.probability(real), judge.probability(fake)


def auc(real, fake):
    """P(a real row scores above a generated one), a tie counted half."""
    fake = np.sort(fake)
    below, not_above = (np.searchsorted(fake, real, side).mean() for side in ("left", "right"))
    return (below + not_above) / 2 / len(fake)


def gradient_of_constant(gan):
    """The largest |dL_G/dθ_G| for a D of constant logit, over several values and both losses."""
    W, b = gan.D.params.layers[-1]
    kept, worst = (W.copy(), b.copy()), 0.0
    for gan.loss in ("minimax", "non-saturating"):
        for logit in (-3, 0, 3):
            W[...], b[...] = 0, logit
            gan.generator_gradient()
            worst = max(worst, float(np.abs(gan.grad_G.flat).max()))
    W[...], b[...] = kept
    return worst


def run(seed=0, quick=False):
    """One column and two columns."""
    found, trained, rocs = [], {}, {}
    for name, steps in (("gaussian", 1500),) if quick else (("gaussian", 3000), ("banana", 4000)):
        gan, snapshots = trained[name] = train(name, steps, seed)
        real, fake = gan.data.real_samples(20_000, seed + 1), gan.sample(20_000, seed + 2)
        D_real, D_fake = gan.probability(real).astype(float), gan.probability(fake).astype(float)
        means, V = (D_real.mean(), D_fake.mean()), np.log(D_real).mean() + np.log1p(-D_fake).mean()
        rocs[name] = scores = fresh_discriminator(gan, 600 if quick else 3000, seed)
        found += [
            Claim(9, f"{name}: mean D on fresh real, on generated rows", "0.5 ± 0.02", "{:.4f}, {:.4f}".format(*means),
                  max(abs(mean - 0.5) for mean in means) < 0.02),
            Claim(9, f"{name}: V̂ on fresh rows", f"{-LOG_4:.3f} ± 0.02", f"{V:.4f}", abs(V + LOG_4) < 0.02),
            Claim(9, f"{name}: held-out AUC of a fresh D", "0.5 ± 0.05", f"{auc(*scores):.3f}",
                  abs(auc(*scores) - 0.5) <= 0.05),
        ]  # fmt: skip
        if name == "gaussian":  # would that D notice a worse G?
            moved = auc(*fresh_discriminator(gan, 600 if quick else 3000, seed, shift=0.2))
            found.append(
                Claim(9, "that D has power: it notices a G moved by 0.2", "> 0.55", f"{moved:.3f}", moved > 0.55)
            )
    zero = gradient_of_constant(trained["gaussian"][0])
    found.append(Claim(9, "D constant: dL_G/dθ_G for both losses", "exactly 0", f"{zero:g}", zero == 0))

    title = "As p_g meets p_data, D goes to 1/2 and V to -log 4"
    fig, axes = claims.figure(title, rows=2, columns=4, width=12.5, height=6)
    gan, snapshots = trained["gaussian"]
    x = plots.surface_grid(gan.data)[:, 0]
    for ax, i in zip(axes[0], (0, 3, 6, -1), strict=True):
        step, samples, D = snapshots[i]
        ax.hist(samples[:, 0], 60, range=(x[0], x[-1]), density=True, color=plots.P_G, alpha=0.4)
        ax.plot(x, gan.data.density(x), ":", color=plots.INK, lw=2)
        ax.plot(x, D, "--", color=plots.REAL, lw=1.8)
        ax.set(ylim=(0, 1.05), xlim=(x[0], x[-1]), xlabel="x")
        jsd = metrics.jensen_shannon_1d(gan.data.density, samples, x[0], x[-1])
        ax.set_title(f"step {step:,}: JSD {jsd:.3f}", fontsize=9, loc="left")
    axes[0, 0].set_ylabel("density; D(x)")
    for text, height, color in (("D(x)", 0.9, plots.REAL), ("data", 0.8, plots.INK), ("samples", 0.7, plots.P_G)):
        axes[0, 0].text(x[-1], height, text, color=color, fontsize=9, ha="right")
    log = {
        name: {key: [row[key] for row in gan.history] for key in gan.history[0]} for name, (gan, _) in trained.items()
    }
    for (name, rows), color in zip(log.items(), (plots.P_G, plots.FAKE), strict=False):
        axes[1, 0].plot(rows["step"], rows["V"], color=color, lw=1, label=name)
        axes[1, 1].plot(rows["step"], rows["D_real"], color=color, lw=1, label=f"{name}: D(x)")
        axes[1, 1].plot(rows["step"], rows["D_fake"], color=color, lw=1, ls=":", label=f"{name}: D(G(z))")
        real, fake = (np.sort(scores)[::-1] for scores in rocs[name])
        levels = np.quantile(np.concatenate([real, fake]), np.linspace(0, 1, 200))
        curves = [(scores[:, None] >= levels).mean(0) for scores in (fake, real)]
        axes[1, 3].plot(*curves, color=color, lw=1.5, label=f"{name}: AUC {auc(real, fake):.3f}")
    axes[1, 0].axhline(-LOG_4, color=plots.INK, ls=":")
    axes[1, 0].set(xlabel="step", ylabel="V̂ while training", xscale="log")
    axes[1, 0].set_title("V̂ goes to -log 4 (dotted)", fontsize=9, loc="left")
    axes[1, 1].axhline(0.5, color=plots.INK, lw=0.6)
    axes[1, 1].set(xlabel="step", ylabel="mean of D", ylim=(0, 1), xscale="log")
    axes[1, 1].set_title("D goes to 1/2, on real and generated", fontsize=9, loc="left")
    last = trained.get("banana", trained["gaussian"])[0]
    points = last.data.real_samples(1500, 0), last.sample(1500, 0)
    for rows, color, name in zip(points, (plots.REAL, plots.FAKE), ("real", "generated"), strict=True):
        axes[1, 2].scatter(rows[:, 0], rows[:, -1], s=3, color=color, alpha=0.6, lw=0, label=name)
    axes[1, 2].set(xlabel="first column", ylabel="second column")
    axes[1, 2].set_title(f"{last.data.name}, 1,500 points each", fontsize=9, loc="left")
    axes[1, 3].plot([0, 1], [0, 1], color=plots.GREY, lw=0.8)
    axes[1, 3].set(xlabel="generated rows called real", ylabel="real rows called real", aspect="equal")
    axes[1, 3].set_title("a fresh D, G finished: near chance", fontsize=9, loc="left")
    for ax in axes[1]:
        ax.legend(frameon=False, fontsize=8)
    if not quick:
        fig.gif = figure_1(gan.data, snapshots)
    return found, fig


def figure_1(data, snapshots):
    """The paper's Figure 1 as it moves: the bytes of a GIF."""
    steps, samples, D = zip(*snapshots, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.gif"
        plots.animate(path, data, samples, steps, D, fps=6)
        return path.read_bytes()


if __name__ == "__main__":
    claims.main(run)
