"""Optimisers over a flat parameter vector, and schedules.

They work through the vector in pieces that stay in the processor's cache, because each update is several
passes over the same numbers. On the GPU it is one kernel, ``ON_GPU``, the same lines for one number.
"""

import numpy as np

CACHE_PIECE = 1 << 16  # elements: theta, velocity, gradient and one buffer of this many stay in the caches


def linear(start, end, t, over):
    """From ``start`` at t = 0 to ``end`` at t = over, then constant."""
    return start + (end - start) * min(t / over, 1.0)


class SGD:
    """v ← momentum v - lr g;  θ ← θ + v (Polyak 1964, as in the 2014 paper's code)."""

    ON_GPU = "T grad, T lr, T momentum", "T v, T theta", "v = momentum * v - lr * grad; theta = theta + v"

    def __init__(self, theta, xp=np):
        self.xp = xp
        self.state, self.powers = {"velocity": xp.zeros_like(theta)}, []  # it has no powers, as Adam has
        self.buffer, self.kernel = _buffer_or_kernel(self, theta)

    def step(self, theta, grad, lr, momentum):
        """Update theta (size,) in place by grad (size,)."""
        self.update(theta, grad, *self.numbers(lr, momentum))

    def numbers(self, lr, momentum):
        """What ``update`` needs beside the vectors, once for each update."""
        return lr, momentum

    def update(self, theta, grad, lr, momentum):
        v, xp = self.state["velocity"], self.xp
        if self.kernel:
            self.kernel(grad, lr, momentum, v, theta)
            return
        piece = len(self.buffer)
        for i in range(0, len(theta), piece):
            j = min(i + piece, len(theta))
            vi, step = v[i:j], self.buffer[: j - i]
            xp.multiply(grad[i:j], lr, out=step)
            vi *= momentum
            vi -= step
            theta[i:j] += vi


class Adam:
    """Kingma and Ba 2015, Algorithm 1, with ``momentum`` as β₁ and β₂ = 0.999, ε = 1e-8."""

    ON_GPU = (
        "T grad, T rate, T beta1, T rest1, T beta2, T rest2, T eps",  # rest = 1 - beta, in double precision
        "T m, T s, T theta",
        "m = beta1 * m + rest1 * grad; s = beta2 * s + rest2 * grad * grad; theta = theta - rate * m / (sqrt(s) + eps)",
    )

    def __init__(self, theta, xp=np, beta2=0.999, eps=1e-8):
        self.xp, self.beta2, self.eps = xp, beta2, eps
        self.state = {"mean": xp.zeros_like(theta), "square": xp.zeros_like(theta)}
        self.powers = [1.0, 1.0]  # β₁ᵗ and β₂ᵗ, as products because β₁ may follow a schedule
        self.buffer, self.kernel = _buffer_or_kernel(self, theta)

    def step(self, theta, grad, lr, momentum):
        """Update theta (size,) in place by grad (size,)."""
        self.update(theta, grad, *self.numbers(lr, momentum))

    def numbers(self, lr, momentum):
        """What ``update`` needs beside the vectors, once for each update: t goes on by 1."""
        self.powers = [self.powers[0] * momentum, self.powers[1] * self.beta2]
        # Algorithm 1 with numerator and denominator times √(1 - β₂ᵗ): it moves to lr and ε, and a pass is saved.
        correction = (1 - self.powers[1]) ** 0.5
        rate = lr * correction / (1 - self.powers[0])
        return rate, momentum, 1 - momentum, self.beta2, 1 - self.beta2, self.eps * correction

    def update(self, theta, grad, rate, beta1, rest1, beta2, rest2, eps):
        xp = self.xp
        if self.kernel:
            self.kernel(grad, rate, beta1, rest1, beta2, rest2, eps, self.state["mean"], self.state["square"], theta)
            return
        piece = len(self.buffer)
        for i in range(0, len(theta), piece):
            j = min(i + piece, len(theta))
            m, s, g, b = self.state["mean"][i:j], self.state["square"][i:j], grad[i:j], self.buffer[: j - i]
            m *= beta1
            xp.multiply(g, rest1, out=b)
            m += b
            s *= beta2
            xp.multiply(g, g, out=b)
            b *= rest2
            s += b
            xp.sqrt(s, out=b)
            b += eps
            xp.divide(m, b, out=b)
            b *= rate
            theta[i:j] -= b


OPTIMIZERS = {"sgd": SGD, "adam": Adam}


def _buffer_or_kernel(optimizer, theta):
    """(a piece of memory to work in, None) on the CPU, (None, a kernel) on the GPU."""
    if optimizer.xp is np:
        return np.empty_like(theta[:CACHE_PIECE]), None
    return None, optimizer.xp.ElementwiseKernel(*optimizer.ON_GPU, name=type(optimizer).__name__)
