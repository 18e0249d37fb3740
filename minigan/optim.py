"""Optimisers over a flat parameter vector, and schedules.

They work through the vector in pieces that stay in the processor's cache, because each update is several
passes over the same numbers. On the GPU it is one kernel, ``ON_GPU``, the same lines for one number.
"""

import contextlib

import numpy as np

from minigan.backend import Axpby, empty, zeros

CACHE_PIECE = 1 << 16  # elements: theta, velocity, gradient and one buffer of this many stay in the caches


def linear(start, end, t, over):
    """From ``start`` at t = 0 to ``end`` at t = over, then constant."""
    return start + (end - start) * min(t / over, 1.0)


class Optimizer:
    """What SGD and Adam have in common. ``state``: vectors like theta; ``powers``: a list, empty but for Adam."""

    def __init__(self, theta, xp, *state):
        self.xp, self.state, self.powers = xp, {name: zeros(xp, theta.shape, theta.dtype) for name in state}, []
        self.buffer = self.kernel = None
        if xp is np:
            self.buffer = empty(xp, (min(len(theta), CACHE_PIECE),), theta.dtype)
        else:
            self.kernel = xp.ElementwiseKernel(*self.ON_GPU, name=type(self).__name__)

    def step(self, theta, grad, lr, momentum):
        """Update theta (size,) in place by grad (size,)."""
        self.update(theta, grad, *self.numbers(lr, momentum))

    def update(self, theta, grad, *numbers, part=slice(None)):
        """The same with what ``numbers`` has returned: once for each update, because Adam counts by it.

        ``part``: on a CPU, the slice of all vectors to do; of ``grad`` only slices are asked for, one after another.
        """
        vectors = [*self.state.values(), theta]
        if self.kernel:
            self.kernel(grad, *numbers, *vectors)
            return
        start, end, _ = part.indices(len(theta))
        for i in range(start, end, len(self.buffer)):
            piece = slice(i, min(i + len(self.buffer), end))
            self.on_cpu(grad[piece], *numbers, *[vector[piece] for vector in vectors])


class SGD(Optimizer):
    """v ← momentum v - lr g;  θ ← θ + v (Polyak 1964, as in the 2014 paper's code)."""

    ON_GPU = "T grad, T lr, T momentum", "T v, T theta", "v = momentum * v - lr * grad; theta = theta + v"

    def __init__(self, theta, xp=np):
        super().__init__(theta, xp, "velocity")
        self.axpby = None
        if xp is np and len(theta) > CACHE_PIECE:  # what is in the caches anyway NumPy does as fast
            with contextlib.suppress(NotImplementedError):
                self.axpby = Axpby(theta.dtype)

    def numbers(self, lr, momentum):
        return lr, momentum

    def on_cpu(self, grad, lr, momentum, v, theta):
        if self.axpby:
            self.axpby(-lr, grad, momentum, v)
        else:
            step = np.multiply(grad, lr, out=self.buffer[: len(grad)])
            v *= momentum
            v -= step
        theta += v


class Adam(Optimizer):
    """Kingma and Ba 2015, Algorithm 1, with ``momentum`` as β₁ and β₂ = 0.999, ε = 1e-8."""

    ON_GPU = (
        "T grad, T rate, T beta1, T rest1, T beta2, T rest2, T eps",  # rest = 1 - beta, in double precision
        "T m, T s, T theta",
        "m = beta1 * m + rest1 * grad; s = beta2 * s + rest2 * grad * grad; theta = theta - rate * m / (sqrt(s) + eps)",
    )

    def __init__(self, theta, xp=np, beta2=0.999, eps=1e-8):
        super().__init__(theta, xp, "mean", "square")
        self.beta2, self.eps = beta2, eps
        self.powers = [1.0, 1.0]  # β₁ᵗ and β₂ᵗ, as products because β₁ may follow a schedule

    def numbers(self, lr, momentum):
        self.powers = [self.powers[0] * momentum, self.powers[1] * self.beta2]
        # Algorithm 1 with numerator and denominator times √(1 - β₂ᵗ): it moves to lr and ε, and a pass is saved.
        correction = (1 - self.powers[1]) ** 0.5
        rate = lr * correction / (1 - self.powers[0])
        return rate, momentum, 1 - momentum, self.beta2, 1 - self.beta2, self.eps * correction

    def on_cpu(self, grad, rate, beta1, rest1, beta2, rest2, eps, m, s, theta):
        b = self.buffer[: len(grad)]
        m *= beta1
        m += np.multiply(grad, rest1, out=b)
        s *= beta2
        np.multiply(grad, grad, out=b)
        b *= rest2
        s += b
        np.sqrt(s, out=b)
        b += eps
        np.divide(m, b, out=b)
        b *= rate
        theta -= b


OPTIMIZERS = {"sgd": SGD, "adam": Adam}
