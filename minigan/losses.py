"""The losses, on logits: s is what D returns, D(x) = σ(s) appears only where a person reads it.

Every loss of the 2014 paper is plus or minus a mean of softplus(±s), and every gradient is one logistic function. In
float32 the textbook form log(1 - σ(s)) is lost from s ≈ 17; this one is exact at ±1000.
"""

import functools

import numpy as np

from minigan.backend import empty_batch

LOSSES = ("non-saturating", "minimax")


def softplus(s, xp=np):
    """log(1 + exp(s)) without overflow: max(s, 0) + log(1 + exp(-|s|))."""
    return xp.maximum(s, 0) + xp.log1p(xp.exp(xp.minimum(s, -s)))


def sigmoid(s, xp=np):
    """D(x) = 1 / (1 + exp(-s)), accurate at both ends."""
    return xp.exp(xp.minimum(s, 0)) / (1 + xp.exp(xp.minimum(s, -s)))


def logistic_gradient(logits, sign, scale, out, xp=np):
    """scale * σ(-sign * s): the derivative that all losses here share, written to ``out`` (n, 1).

    ``sign`` and ``scale`` are numbers or (n, 1). exp may overflow to infinity, whose reciprocal is the right 0.
    """
    if xp is not np:
        return _logistic_kernel(xp)(logits, sign, scale, out)
    xp.multiply(logits, sign, out=out)
    with np.errstate(over="ignore"):
        xp.exp(out, out=out)
    out += 1
    return xp.divide(scale, out, out=out)


@functools.cache
def _logistic_kernel(xp):
    """The same in one kernel on a GPU."""
    return xp.ElementwiseKernel(
        "T logits, T sign, T scale", "T out", "out = scale / (1 + exp(sign * logits))", name="logistic_gradient"
    )


def bce(logits, labels, xp=np):
    """Binary cross-entropy of D(x) = σ(s) against labels 0 or 1 of the same shape, (n, 1): its mean, a scalar.

    -[y log D + (1 - y) log(1 - D)] = softplus(s) - y s.
    """
    return (softplus(logits, xp) - labels * logits).mean()


def value(logits_real, logits_fake, xp=np):
    """V̂ = mean log D(x) + mean log(1 - D(G(z))): Goodfellow et al. 2014, eq. 1; what D ascends."""
    return -softplus(-logits_real, xp).mean() - softplus(logits_fake, xp).mean()


class DiscriminatorLoss:
    """L_D = -V̂ = 2 BCE, for a batch of m real rows above m fake rows.

    ``gradient(logits, out)``: dL_D/ds (2m, 1) = -σ(-s)/m on real and σ(s)/m on fake rows. In terms of D:
    (D - 1)/m and D/m.
    """

    def __init__(self, m, xp=np, dtype=np.float32):
        self.m, self.xp = m, xp
        self.sign = xp.ones((2 * m, 1), dtype)
        self.sign[m:] = -1
        self.scale = -self.sign / m

    def __call__(self, logits):
        return -value(logits[: self.m], logits[self.m :], self.xp)

    def gradient(self, logits, out):
        return logistic_gradient(logits, self.sign, self.scale, out, self.xp)


def generator_loss(logits_fake, kind="non-saturating", xp=np):
    """What G descends, a scalar, for logits (m, 1) of G(z).

    "minimax": mean log(1 - D(G(z))) (2014 paper, Algorithm 1). "non-saturating": -mean log D(G(z)) (its section 3),
    with the same fixed point and a far stronger gradient while D still rejects every sample.
    """
    if kind == "minimax":
        return -softplus(logits_fake, xp).mean()
    return softplus(-logits_fake, xp).mean()


def generator_gradient(logits_fake, out, kind="non-saturating", xp=np):
    """dL_G/ds (m, 1): -D/m for "minimax", (D - 1)/m for "non-saturating"."""
    sign = -1 if kind == "minimax" else 1
    return logistic_gradient(logits_fake, sign, -1 / len(logits_fake), out, xp)


def log_softmax(logits, xp=np):
    """log of the class probabilities exp(s_j) / sum_k exp(s_k), for logits (n, classes), in the same shape.

    The largest logit of a row is taken out first: no exponential overflows, and the sum is at least 1.
    """
    s = logits - logits.max(axis=1, keepdims=True)
    return s - xp.log(xp.exp(s).sum(axis=1, keepdims=True))


def cross_entropy(logits, labels, xp=np):
    """The classifier's loss, mean of -log p[label], a scalar: logits (n, classes), labels (n,) in 0 .. classes - 1."""
    return -log_softmax(logits, xp)[xp.arange(len(labels)), labels].mean()


def cross_entropy_gradient(logits, labels, out, xp=np):
    """dloss/ds (n, classes), written to ``out``: (p - 1[class is the label]) / n, p the class probabilities."""
    xp.exp(log_softmax(logits, xp), out=out)
    out[xp.arange(len(labels)), labels] -= 1
    out /= len(labels)
    return out


class GradientPenalty:
    """(γ/2) E‖∇ₓ s(x)‖², R1 on real rows or R2 on fake ones: Mescheder et al. 2018, arXiv 1801.04406, eqs. 9, 10.

    Its gradient needs no autograd. With v = ∇ₓ s held constant, d/dθ ½‖∇ₓ s‖² = d/dθ (v·∇ₓ s), which is the
    gradient of the tangent (directional derivative) of s along v. So: one backward pass with dout = 1 for v,
    one tangent pass along it, one backward pass through that tangent. For piecewise linear layers the last one is
    dW_l = (tangent into layer l)ᵀ (delta of its output), db_l = 0. The forward pass is the loss's own.
    """

    def __init__(self, net, n, features=None, room=()):
        """features: the columns of x if others, a conditional GAN's labels, stand behind it: those are not x.
        room: a vector that ``add_gradient`` may use."""
        self.net, self.features = net, net.n_in if features is None else features
        self.one = net.xp.ones((n, 1), net.dtype)
        self.xdot = empty_batch(net.xp, (n, net.n_in), net.dtype)
        self.scratch = net.scratch(room)

    def add_gradient(self, tape, gamma, grad):
        """Add the penalty's gradient on the n rows of ``tape`` to ``grad``. Returns γ/n ‖∇ₓ s‖² of each row, (n, 1),
        whose sum is twice the penalty.

        The tape's forward pass must be done. Its backward buffers are overwritten.
        """
        net = self.net
        v = net.backward(self.one, tape)
        net.xp.multiply(v, gamma / len(v), out=self.xdot)
        self.xdot[:, self.features :] = 0
        squared_norms = net.tangent(self.xdot, tape)
        net.backward_tangent(self.xdot, tape, grad, self.scratch)
        return squared_norms
