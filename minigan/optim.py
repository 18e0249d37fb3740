"""Optimisers over a flat parameter vector, and schedules.

They work through the vector in pieces that stay in the processor's cache, because each update is several
passes over the same numbers; on the GPU one piece is the whole vector.
"""

import numpy as np

CACHE_PIECE = 1 << 17  # elements: theta, velocity, gradient and one buffer of this many stay in the caches


def linear(start, end, t, over):
    """From ``start`` at t = 0 to ``end`` at t = over, then constant."""
    return start + (end - start) * min(t / over, 1.0)


class SGD:
    """v ← momentum v - lr g;  θ ← θ + v (Polyak 1964, as in the 2014 paper's code)."""

    def __init__(self, theta, xp=np):
        self.xp = xp
        self.state, self.powers = {"velocity": xp.zeros_like(theta)}, []  # it has no powers, as Adam has
        self.buffer = xp.empty_like(theta[: _piece(theta, xp)])

    def step(self, theta, grad, lr, momentum):
        """Update theta (size,) in place by grad (size,)."""
        v, xp, piece = self.state["velocity"], self.xp, len(self.buffer)
        for i in range(0, len(theta), piece):
            j = min(i + piece, len(theta))
            vi, step = v[i:j], self.buffer[: j - i]
            xp.multiply(grad[i:j], lr, out=step)
            vi *= momentum
            vi -= step
            theta[i:j] += vi


class Adam:
    """Kingma and Ba 2015, Algorithm 1, with ``momentum`` as β₁ and β₂ = 0.999, ε = 1e-8."""

    def __init__(self, theta, xp=np, beta2=0.999, eps=1e-8):
        self.xp, self.beta2, self.eps = xp, beta2, eps
        self.state = {"mean": xp.zeros_like(theta), "square": xp.zeros_like(theta)}
        self.powers = [1.0, 1.0]  # β₁ᵗ and β₂ᵗ, as products because β₁ may follow a schedule
        self.buffer = xp.empty_like(theta[: _piece(theta, xp)])

    def step(self, theta, grad, lr, momentum):
        """Update theta (size,) in place by grad (size,)."""
        xp, beta2, piece = self.xp, self.beta2, len(self.buffer)
        self.powers = [self.powers[0] * momentum, self.powers[1] * beta2]
        # Algorithm 1 with numerator and denominator times √(1 - β₂ᵗ): it moves to lr and ε, and a pass is saved.
        correction = (1 - self.powers[1]) ** 0.5
        rate = lr * correction / (1 - self.powers[0])
        for i in range(0, len(theta), piece):
            j = min(i + piece, len(theta))
            m, s, g, b = self.state["mean"][i:j], self.state["square"][i:j], grad[i:j], self.buffer[: j - i]
            m *= momentum
            xp.multiply(g, 1 - momentum, out=b)
            m += b
            s *= beta2
            xp.multiply(g, g, out=b)
            b *= 1 - beta2
            s += b
            xp.sqrt(s, out=b)
            b += self.eps * correction
            xp.divide(m, b, out=b)
            b *= rate
            theta[i:j] -= b


OPTIMIZERS = {"sgd": SGD, "adam": Adam}


def _piece(theta, xp):
    return min(len(theta), CACHE_PIECE) if xp is np else len(theta)
