"""The Helvetica scenario: mode collapse made on purpose, noticed while training goes on, and cured in the same run.

Source: S3, section 4; Goodfellow et al. 2014, section 6: "G must not be trained too much without updating D", or it
"collapses too many values of z to the same value of x". For a fixed D, G's loss E_z[-log D(G(z))] is least if every z
goes to the one x where D is largest. So: 50 steps of G for each step of D collapse G onto a point that flees around.
What tells it is in every GAN.report(): ``spread``, the standard deviation of a fake batch, over ``spread_real``.
The alarm is a median of the last five ratios below one half (a single one may jump, as all flee at once). The cure: one
step for one again, and R1, which keeps D from pulling all samples to one side (Mescheder et al. 2018).
What the ratio cannot see: two modes far apart spread like eight. Hence mode coverage beside it.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, load, metrics, plots
from minigan.claims import Claim
from minigan.losses import GradientPenalty

OPTIONS = dict(generator="64, relu, 64, relu, 64, relu", latent_dim=2, batch_size=128, optimizer="adam", lr=0.001,
               discriminator="64, leaky_relu 0.2, 64, leaky_relu 0.2, 64, leaky_relu 0.2", lr_end=0.05, init_D="he",
               report_every=10, backend="numpy")  # fmt: skip
R1, TOO_MANY, ALARM, WINDOW = 0.1, 50, 0.5, 5


def train(data, seed, collapse, steps):
    """Train, for the first ``collapse`` steps with 50 steps of G each and no R1.

    Returns the GAN, (step, spread ratio, modes within 3σ) of every report as rows, and G's samples when it collapsed.
    """
    gan, rows, collapsed = GAN(**OPTIONS, r1=R1, steps=steps, seed=seed).build(data), [], None
    if collapse:
        gan.r1, gan.penalty = 0.0, None
    while gan.step < steps:
        if gan.step < collapse:
            for _ in range(TOO_MANY - 1):
                gan.generator_step()
        gan.train_step()
        if gan.step % (10 if gan.step <= 1000 else 100) == 0:  # the reports cost more than ten steps
            report = gan.report()
            now = gan.sample(500, seed=1, average=False)
            modes = metrics.mode_coverage(now, data.modes, data.sigma)["modes"]
            rows.append((gan.step, report["spread"] / report["spread_real"], modes))
        if gan.step == collapse:
            collapsed = now
            gan.r1, gan.penalty = R1, GradientPenalty(gan.D, gan.m)
    return gan, np.array(rows).T, collapsed


def alarms(ratio):
    """At which reports the median of the last five ratios is below one half, bool (reports,)."""
    medians = [np.median(ratio[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(ratio))]
    return (np.array(medians) < ALARM) & (np.arange(len(ratio)) >= WINDOW - 1)


def run(seed=0, quick=False):
    """A healthy run and one that is collapsed for its first 150 steps."""
    data, collapse, steps = load("ring"), *((80, 80) if quick else (150, 9000))
    gan, (step, ratio, modes), collapsed = train(data, seed, collapse, steps)
    healthy_gan, (_, healthy_ratio, _), _ = train(data, seed, 0, 300 if quick else steps)
    alarm, first = alarms(ratio), step <= collapse
    heard = int(step[alarm][0]) if alarm.any() else None
    false_alarms = int(alarms(healthy_ratio).sum())
    found = [
        Claim(16, "made on purpose: 50 steps of G per step of D collapse it", "at most 2 of 8 modes, spread < 0.5",
              f"{int(modes[first][-1])} modes, spread {np.median(ratio[first]):.2f} of the data's",
              modes[first][-1] <= 2 and np.median(ratio[first]) < 0.5),
        Claim(16, "detected while training, from its reports", "alarm by the tenth report",
              f"step {heard}, report {heard and heard // 10}",
              heard is not None and heard <= 100),
        Claim(16, "no false alarm in a healthy run", f"0 of {len(healthy_ratio)} reports", str(false_alarms),
              false_alarms == 0),
    ]  # fmt: skip
    fakes = {f"collapsed, step {collapse}": collapsed}
    if not quick:
        end, good = (metrics.mode_coverage(g.sample(2500, seed=2), data.modes, data.sigma) for g in (gan, healthy_gan))
        late = int(alarm[step > 2 * collapse + 200].sum())
        fakes[f"cured, step {steps}"] = gan.sample(500, seed=1)
        found += [
            Claim(16, "cured in the same run by one step for one, and R1", "8 of 8 modes, no alarm after step 500",
                  f"{end['modes']} of 8, {late} alarms, {end['high_quality']:.0%} within 3σ",
                  end["modes"] == 8 and late == 0),
            Claim(16, "prevented by the same from the start", "8 of 8 modes",
                  f"{good['modes']} of 8, {good['high_quality']:.0%} within 3σ", good["modes"] == 8),
        ]  # fmt: skip
    return found, draw(data, step, ratio, modes, alarm, healthy_ratio, fakes, collapse)


def draw(data, step, ratio, modes, alarm, healthy_ratio, fakes, collapse):
    """Spread and modes over training, and the samples."""
    title = (
        "The Helvetica scenario: too many steps of G collapse it, its spread tells; one step for one, and R1, cure it"
    )
    fig, axes = claims.figure(title, columns=2 + len(fakes), width=14, height=3.6)
    for ax in axes[:2]:
        ax.axvspan(step[0], collapse, color=plots.FAKE, alpha=0.12, lw=0)
        ax.set(xscale="log", xlim=(step[0], step[-1]), xlabel="steps of D, log scale")
        ax.text(step[0] * 1.1, 0.98, "50 steps of G\nper step of D", transform=ax.get_xaxis_transform(), fontsize=9,
                color=plots.FAKE, va="top")  # fmt: skip
    ax = axes[0]
    n = min(len(step), len(healthy_ratio))
    ax.plot(step[:n], healthy_ratio[:n], color=plots.REAL, lw=1)
    ax.plot(step, ratio, color=plots.FAKE, lw=1)
    ax.plot(step[alarm], np.full(alarm.sum(), 0.03), "|", color=plots.INK, ms=10)
    ax.axhline(ALARM, color=plots.GREY, lw=0.8, ls=":")
    ax.text(step[-1], 1.12, "healthy run", color=plots.REAL, fontsize=9, ha="right")
    ax.text(
        step[-1],
        ALARM - 0.03,
        "alarm if the median of 5 is below",
        color=plots.GREY,
        fontsize=8.5,
        ha="right",
        va="top",
    )
    ax.text(step[0] * 1.1, 0.1, "alarm", fontsize=9)
    ax.set(ylabel="spread of fakes / spread of data", ylim=(0, 2))
    axes[1].plot(step, modes, color=plots.P_G, lw=1.2)
    axes[1].set(ylabel="modes of 8 with a sample within 3σ", ylim=(-0.2, 8.4))
    for ax, (name, x) in zip(axes[2:], fakes.items(), strict=True):
        ax.scatter(*data.modes.T, s=180, facecolors="none", edgecolors=plots.REAL)
        ax.scatter(*x.T, s=5, color=plots.FAKE, alpha=0.6)
        ax.set(xlabel=f"{name}: 500 samples,\nand the ring's eight modes (circles)", xlim=(-3, 3), ylim=(-3, 3),
               aspect="equal", xticks=[], yticks=[])  # fmt: skip
    return fig


if __name__ == "__main__":
    claims.main(run)
