"""The smallest GAN: one number against one slope, and whether they meet depends on the update, momentum and R1.

Source: Mescheder, Geiger and Nowozin 2018 (arXiv 1801.04406), section 2: data at 0, p_g at θ, logit ψx, equilibrium
(0, 0). D descends log(1 + exp(ψθ)) + γψ²/2 in ψ; G descends -log(1 + exp(ψθ)) (minimax) or log(1 + exp(-ψθ)) in θ.
S4: "these simplifications make the adversarial training process unstable". Linearised at (0, 0), with step h, one
simultaneous step with R1 is the matrix [[1, h/2], [-h/2, 1 - hγ]] over (θ, ψ): its eigenvalues tell how fast.
Momentum, if any, should be negative (Gidel et al. 2019, arXiv 1807.04740).
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import claims, losses, plots
from minigan.claims import Claim
from minigan.optim import SGD

H = 0.2  # learning rate of both
START = (1.0, -1.0)  # θ, ψ: D rejects G's sample
# |(θ, ψ)| after 500 steps, alternating with G first, to the digits that another program gave: loss, γ, update
KNOWN = {
    ("minimax", 0, "simultaneous"): "3.097",
    ("minimax", 0, "alternating"): "1.421",
    ("non-saturating", 0, "simultaneous"): "0.640",
    ("non-saturating", 0, "alternating"): "0.284",
    ("non-saturating", 1, "simultaneous"): "1.5e-23",
    ("non-saturating", 1, "alternating"): "1.9e-17",
}
MOMENTUM = {-0.5: "0.0205", -0.3: "0.0241", 0.0: "0.142", 0.5: "1.27"}  # non-saturating, alternating, 2,000 steps


def orbit(loss="non-saturating", gamma=0.0, update="alternating", momentum=0.0, steps=500):
    """(θ, ψ) before the first and after every step, (steps + 1, 2)."""
    theta, psi = (np.array([value]) for value in START)
    G, D, d_logit, path = SGD(theta), SGD(psi), np.empty((1, 1)), [START]
    for _ in range(steps):
        seen = theta.copy() if update == "simultaneous" else theta  # which θ does D's step see
        losses.generator_gradient((psi * theta)[None], d_logit, loss)
        G.step(theta, d_logit[0] * psi, H, momentum)
        D.step(
            psi, losses.sigmoid(psi * seen) * seen + gamma * psi, H, momentum
        )  # the real row, at 0, pulls at nothing
        path.append((theta[0], psi[0]))
    return np.array(path)


def spectral_radius(gamma, update):
    """The largest |eigenvalue| of one step over (θ, ψ) at (0, 0), where σ = 1/2 for either loss."""
    G = np.array([[1, H / 2], [0, 1]])
    D = np.array([[1, 0], [-H / 2, 1 - H * gamma]])
    return np.abs(np.linalg.eigvals(D @ G if update == "alternating" else D + G - np.eye(2))).max()


def agrees(measured, digits):
    """Does a number round to a text such as "0.640"?"""
    significant = len(digits.split("e")[0].replace(".", "").lstrip("0"))
    return float(f"{measured:.{significant}g}") == float(digits)


def run(seed=0, quick=False):
    """Every orbit; nothing is random, so the seed has no effect."""
    found, orbits = [], {}
    for (loss, gamma, update), known in KNOWN.items():
        path = orbits[loss, gamma, update] = orbit(loss, gamma, update)
        end = np.hypot(*path[-1])
        name = f"{loss}{' with R1' * bool(gamma)}, {update}: |(θ, ψ)| after 500 steps, from 1.414"
        found.append(Claim(24, name, known, f"{end:.4g}", agrees(end, known)))
    for update in ("simultaneous", "alternating"):
        path = orbits["non-saturating", 1, update]
        rate, theory = (np.hypot(*path[-1]) / np.hypot(*path[-101])) ** 0.01, spectral_radius(1.0, update)
        found.append(Claim(24, f"with R1, {update}: shrinks per step by", f"eigenvalue {theory:.4f} ± 0.005",
                           f"{rate:.4f}", abs(rate - theory) < 0.005))  # fmt: skip
    for beta in (*MOMENTUM, 0.9):
        with np.errstate(over="ignore", invalid="ignore"):
            orbits[beta] = orbit(momentum=beta, steps=2000)
    for beta, known in MOMENTUM.items():
        end = np.hypot(*orbits[beta][-1])
        found.append(
            Claim(24, f"momentum {beta:g}, alternating: after 2,000 steps", known, f"{end:.4g}", agrees(end, known))
        )
    end = np.hypot(*orbits[0.9][-1])
    found.append(Claim(24, "momentum 0.9 diverges", "> 100, or not finite", f"{end:.4g}", not end <= 100))

    fig, (left, middle, right) = claims.figure(
        "The smallest GAN circles its equilibrium; R1 takes it there, momentum 0.9 throws it out",
        columns=3,
        width=12,
    )
    shown = {
        ("minimax", 0, "simultaneous"): (plots.FAKE, "minimax, simultaneous"),
        ("minimax", 0, "alternating"): (plots.GREY, "minimax, alternating"),
        ("non-saturating", 0, "alternating"): (plots.REAL, "non-saturating, alternating"),
        ("non-saturating", 1, "alternating"): (plots.P_G, "the same with R1, γ = 1"),
    }
    for key, (color, name) in shown.items():
        left.plot(*orbits[key].T, color=color, lw=0.7)
        middle.semilogy(np.hypot(*orbits[key].T), color=color, lw=1.5, label=name)
    left.plot(*START, "o", color=plots.INK, ms=5)
    left.plot(0, 0, "+", color=plots.INK, ms=12, mew=2)
    left.set(xlabel="θ: where G puts its sample (data at 0)", ylabel="ψ: slope of D's logit", aspect="equal")
    left.set_title("500 steps from the dot; + is the equilibrium", fontsize=9, loc="left")
    middle.set(xlabel="step", ylabel="distance from the equilibrium, |(θ, ψ)|", ylim=(1e-18, 1e4))
    middle.legend(frameon=False, fontsize=8.5, loc="lower left")
    middle.set_title("loss, update order, R1", fontsize=9, loc="left")
    for beta, color in zip((*MOMENTUM, 0.9), (plots.P_G, "#56B4E9", plots.INK, "#E69F00", plots.FAKE), strict=True):
        distance = np.hypot(*orbits[beta].T)
        right.loglog(np.arange(1, 2002), distance, color=color, lw=1.2, label=f"momentum {beta:g}")
    right.set(xlabel="step", ylim=(1e-2, 30))
    right.legend(frameon=False, fontsize=8.5, loc="lower left")
    right.set_title("momentum; non-saturating, alternating", fontsize=9, loc="left")
    return found, fig


if __name__ == "__main__":
    claims.main(run)
