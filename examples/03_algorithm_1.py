"""Algorithm 1 does what it says: k steps of D, one of G, fresh noise each time, and nothing else.

Source: Goodfellow et al. 2014, Algorithm 1 and section 6; S1 to S4. While one network takes a step the other stays
as it is, bit for bit; no z serves twice; there is no Markov chain and no inference: a sample is one forward pass.
"A wide variety of functions can be incorporated" (S3): a layer that minigan does not have takes 13 lines below,
its gradients are checked like all others, and G and D train with it, gradient penalty included.
(S2 prints its step counts as "(12)" and "(t)"; they are k and 1. The prior is fixed, not learned as in S4.)
"""

import inspect
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import GAN, claims, gradcheck, load, losses, metrics, plots
from minigan.claims import Claim, below
from minigan.layers import Tanh
from minigan.mlp import ACTIVATIONS


class Softplus(Tanh):
    """out = log(1 + exp(x)), with φ' = σ(x) = 1 - exp(-out) and φ'' = φ' (1 - φ')."""

    def forward(self, x, p, c, rng=None):
        c.out[...] = losses.softplus(x)
        return c.out

    def _derivative(self, c):
        np.expm1(-c.out, out=c.derivative)
        c.derivative *= -1

    def _second_derivative(self, c):
        np.multiply(c.derivative, 1 - c.derivative, out=c.e)


ACTIVATIONS["softplus"] = Softplus  # from here on "32, softplus" is a network


class Watched(GAN):
    """A GAN that writes down who took a step, how far both weight vectors moved, and every z and forward pass."""

    def watch(self):
        """Start the record, and return self; after ``build``."""
        self.steps_taken, self.moved, self.z_drawn, self.passes = [], [], [], []
        for name, net in (("G", self.G), ("D", self.D)):
            net.forward = lambda *args, f=net.forward, name=name: (self.passes.append(name), f(*args))[1]
        return self

    def discriminator_step(self, x_real=None):
        self._write_down("D", super().discriminator_step)

    def generator_step(self):
        self._write_down("G", super().generator_step)

    def draw_z(self):
        z = super().draw_z()
        self.z_drawn.append(z.copy())
        return z

    def _write_down(self, who, step):
        before = self.D.theta.copy(), self.G.theta.copy()
        step()
        self.steps_taken.append(who)
        self.moved.append([np.linalg.norm(net.theta - old) for net, old in zip((self.D, self.G), before, strict=True)])


def gradient_errors():
    """Worst relative errors of Softplus: the layer alone, and R1 through networks of it."""
    layer = gradcheck.check_layer(lambda n, xp: Softplus(n, xp), "Softplus", 1e-8)
    penalty = gradcheck.check_penalty("5, softplus, 4, softplus")
    return max(check.error for check in layer), penalty.error


def run(seed=0, quick=False):
    """Watch 40 iterations for k = 1, 2, 5; check and train the new layer."""
    counts, still, reused, drawn = [], [], 0, 0
    for k in (1, 2, 5):
        gan = Watched(generator="16, relu", discriminator="16, leaky_relu 0.2", latent_dim=4, k=k, steps=40,
                      batch_size=64, backend="numpy", seed=seed).build(load("ring")).watch()  # fmt: skip
        for _ in range(40):
            gan.train_step()
        moved, by_G = np.array(gan.moved), np.array(gan.steps_taken) == "G"
        counts.append(
            f"{(~by_G).sum()} : {by_G.sum()}" if gan.steps_taken == (["D"] * k + ["G"]) * 40 else "wrong order"
        )
        still.append(max(moved[by_G, 0].max(), moved[~by_G, 1].max()))
        least = min(moved[by_G, 1].min(), moved[~by_G, 0].min())
        z = np.concatenate(gan.z_drawn)
        drawn, reused = drawn + len(z), reused + len(z) - len(np.unique(z, axis=0))
        if k == 2:
            shown = moved[:18]
    del gan.passes[:]
    gan.sample(64)
    passes = " + ".join(f"{gan.passes.count(name)} of {name}" for name in "GD")

    of_layer, of_penalty = gradient_errors()
    source = inspect.getsource(Softplus)
    data = load("gaussian")
    new = GAN(generator="32, softplus, 32, relu", discriminator="32, softplus, 32, leaky_relu 0.2", latent_dim=2,
              steps=2500, batch_size=128, r1=0.1, init_D="he", seed=seed).fit(data)  # fmt: skip
    samples = new.sample(10_000, seed=0)
    jsd = metrics.jensen_shannon_1d(data.density, samples, -2, 5)
    found = [
        Claim(2, "#D steps = k · #G steps, in this order, k = 1, 2, 5", "40 : 40, 80 : 40, 200 : 40", ", ".join(counts),
              counts == ["40 : 40", "80 : 40", "200 : 40"]),
        Claim(2, "the other network stays as it is", "|Δθ| 0, the own one's > 0", f"{max(still):g}, {least:.1g}",
              max(still) == 0 < least),
        Claim(2, "no z is used twice", "0 repeated", f"{reused} of {drawn:,}", reused == 0),
        Claim(18, "64 samples: one pass of G, none of D", "1 of G + 0 of D", passes, passes == "1 of G + 0 of D"),
        Claim(18, "a new layer in under 20 lines", "< 20 lines", f"{len(source.splitlines())} lines",
              len(source.splitlines()) < 20),
        below(18, "its gradient and tangent", of_layer, 1e-8, "relative"),
        below(18, "the gradient penalty's gradient through it", of_penalty, 1e-6, "relative"),
        below(18, "G and D with that layer learn a Gaussian: JSD", jsd, 0.03),
    ]  # fmt: skip

    fig, (left, middle, right) = claims.figure(
        "Algorithm 1 moves one network at a time, and any differentiable layer will do",
        columns=3,
        width=12.5,
        width_ratios=[1, 1.35, 0.9],
    )
    index = np.arange(1, len(shown) + 1)
    left.bar(index, shown[:, 0], color=plots.REAL, label="D's weights")
    left.bar(index, shown[:, 1], color=plots.P_G, label="G's weights")
    left.set(xlabel="update", ylabel="how far the weights moved, |Δθ|", xticks=index, ylim=(0, 1.25 * shown.max()))
    left.set_xticklabels(["D", "D", "G"] * (len(shown) // 3))
    left.legend(frameon=False, fontsize=9, ncol=2, loc="upper left")
    left.set_title("k = 2: two steps of D, one of G; the other stays", loc="left", fontsize=9)
    middle.axis("off")
    middle.text(0, 1, source, family="monospace", fontsize=6.8, va="top", transform=middle.transAxes)
    middle.set_title(
        f"the new layer; its gradients are right to {max(of_layer, of_penalty):.0e}", loc="left", fontsize=9
    )
    x = np.linspace(-1.5, 4.5, 300)
    right.plot(x, data.density(x), ":", color=plots.INK, lw=2)
    right.hist(samples[:, 0], 60, range=(-1.5, 4.5), density=True, color=plots.P_G, alpha=0.4)
    right.text(2.6, 0.5, "dotted: data\nbars: samples\n" + f"JSD {jsd:.4f}", fontsize=9, va="top")
    right.set(xlabel="x", ylabel="density")
    right.set_title("G and D with it, trained", loc="left", fontsize=9)
    return found, fig


if __name__ == "__main__":
    claims.main(run)
