"""A mixture of Gaussians by EM: the generative model from before deep learning, with a density one can write down.

p(x) = Σ_k π_k N(x; μ_k, Σ_k) (Dempster, Laird and Rubin 1977, section 4.3). Where a GAN has samples only, this has
log p(x), exact, and is fitted by maximum likelihood, which is minimum KL(p_data ‖ p). float64, on the host.
"""

import math
from types import SimpleNamespace

import numpy as np

from minigan.clusters import far_rows
from minigan.errors import MiniganError
from minigan.metrics import nearest_neighbours
from minigan.mlp import Vector


class GaussianMixture:
    """K Gaussians with full covariances, in the data's own units.

        mixture = GaussianMixture(8).fit(X)       # X (N, features)
        mixture.log_density(x)                    # (n,), nats
        mixture.sample(64)                        # (64, features)

    ``theta`` holds all parameters: ``logits`` (K,) of the weights π = softmax(logits), ``means`` (K, features), and
    ``whiteners`` (K, features, features), W_k with Σ_k⁻¹ = W_k W_kᵀ. ``floor`` is the least variance that a component
    may have in any direction: without one the likelihood has no maximum, as a component can shrink onto one row.
    Raises MiniganError for a number of components below 1, a floor not above 0 or infinite, and use before ``fit``.
    """

    def __init__(self, components, floor=1e-6, seed=0):
        if components < 1:
            raise MiniganError(f"a mixture of {components} components has no density; use 1 or more")
        if not 0 < floor < math.inf:
            raise MiniganError(f"the floor {floor} bounds no variance; use a finite number above 0")
        self.components, self.floor, self.seed = components, floor, seed
        self.params = None
        self.history = []  # mean log-likelihood of the data before each step, and after the last

    def build(self, features, dtype=np.float64):
        """Make the parameters, all zero, and return self."""
        K = self.components
        self.params = Vector([SimpleNamespace(shapes=((K,), (K, features), (K, features, features)))], np, dtype)
        self.theta = self.params.flat
        self.logits, self.means, self.whiteners = self.params.layers[0]
        return self

    # -- The density -----------------------------------------------------------------------------------

    def log_density(self, x):
        """log p(x) (n,), nats, for x (n, features)."""
        return _log_sum_exp(self._log_joint(x)[0])

    def responsibilities(self, x):
        """The posterior of the components, p(k | x) (n, K)."""
        return _normalised(self._log_joint(x)[0])

    def _log_joint(self, x):
        """log π_k N(x; μ_k, Σ_k) (n, K), and the whitened offsets (x - μ_k) W_k (K, n, features)."""
        self._need_parameters()
        white = np.matmul(x[None] - self.means[:, None], self.whiteners)
        sign, log_determinant = np.linalg.slogdet(self.whiteners)
        log_determinant = log_determinant + np.log(sign * sign) / 2  # 0, unless the complex step differentiates it
        log_weights = self.logits - _log_sum_exp(self.logits)
        constant = log_weights + log_determinant - self.means.shape[1] / 2 * math.log(2 * math.pi)
        return constant - (white * white).sum(2).T / 2, white

    def gradient(self, x):
        """d/dθ of the mean of log p over the rows of x (n, features): a Vector like ``params``.

        With r = p(k | x) and white = (x - μ_k) W_k: dlogits = mean of r - π, dμ_k = mean of r white W_kᵀ,
        dW_k = mean of r (W_k⁻ᵀ - (x - μ_k)ᵀ white).
        All are zero where EM stands still, but for variances held at the floor.
        """
        log_joint, white = self._log_joint(x)
        r = _normalised(log_joint).T[:, :, None] / len(x)  # (K, n, 1)
        grad = Vector([SimpleNamespace(shapes=tuple(p.shape for p in self.params.layers[0]))], np, self.theta.dtype)
        dlogits, dmeans, dwhiteners = grad.layers[0]
        share = r.sum(1)  # (K, 1)
        dlogits[...] = share[:, 0] - _normalised(self.logits)
        dmeans[...] = np.matmul(self.whiteners, (r * white).sum(1)[:, :, None])[:, :, 0]
        offsets = x[None] - self.means[:, None]
        dwhiteners[...] = share[:, :, None] * np.linalg.inv(self.whiteners).swapaxes(1, 2)
        dwhiteners -= np.matmul(offsets.swapaxes(1, 2), r * white)
        return grad

    # -- Expectation, maximisation ---------------------------------------------------------------------

    def fit(self, X, steps=200, tolerance=1e-6):
        """EM from the beginning on X (N, features), until a step gains less than ``tolerance`` nats a row.

        Returns self. Raises MiniganError if there are fewer rows than components, or NaN or infinity among them.
        """
        X = np.asarray(X, np.float64)
        if X.ndim != 2 or len(X) < self.components:
            raise MiniganError(f"{self.components} components need as many rows or more, and got data {X.shape}")
        if not np.isfinite(X).all():
            bad = X.size - np.isfinite(X).sum()
            raise MiniganError(f"the data hold {bad} values that are NaN or infinite; remove or replace them")
        self.build(X.shape[1])
        self._start(X)
        self.history = [float(self.log_density(X).mean())]
        for _ in range(steps):
            self.step(X)
            self.history.append(float(self.log_density(X).mean()))
            if self.history[-1] - self.history[-2] < tolerance:
                break
        return self

    def step(self, X):
        """One step of EM: responsibilities, then the parameters that are most likely given them."""
        self._maximise(X, self.responsibilities(X))

    def _maximise(self, X, r):
        """The parameters that maximise Σ r_nk log π_k N(x_n; μ_k, Σ_k), every variance at least ``floor``.

        Below the floor an eigenvalue of the weighted covariance is raised to it. That is the maximum under this
        constraint, not only a repair, so the likelihood still never falls.
        """
        counts = np.maximum(r.sum(0), 1e-300)
        self.logits[...] = np.log(counts / len(X))
        self.means[...] = r.T @ X / counts[:, None]
        for k in range(self.components):
            offsets = X - self.means[k]
            variances, axes = np.linalg.eigh((r[:, k, None] * offsets).T @ offsets / counts[k])
            self.whiteners[k] = axes / np.sqrt(np.maximum(variances, self.floor))

    def _start(self, X):
        """Means on rows far from one another, as k-means++ has them, then one step with hard shares."""
        nearest = nearest_neighbours(X, far_rows(X, self.components, np.random.default_rng(self.seed)))[0]
        self._maximise(X, np.eye(self.components)[nearest])

    # -- Samples ---------------------------------------------------------------------------------------

    def sample(self, n, seed=0):
        """n samples (n, features), float32, in the data's units."""
        self._need_parameters()
        rng = np.random.default_rng(seed)
        k = rng.choice(self.components, size=n, p=_normalised(self.logits))
        noise = rng.standard_normal((n, self.means.shape[1], 1))
        factors = np.linalg.inv(self.whiteners).swapaxes(1, 2)  # W⁻ᵀ W⁻¹ = Σ
        return (self.means[k] + np.matmul(factors[k], noise)[:, :, 0]).astype(np.float32)

    def _need_parameters(self):
        if self.params is None:
            raise MiniganError("this mixture has no parameters yet; call fit(X)")


def _log_sum_exp(a):
    """log Σ exp(a) over the last axis, the largest exponent taken out first."""
    largest = a.max(-1, keepdims=True)
    return np.log(np.exp(a - largest).sum(-1)) + largest[..., 0]


def _normalised(a):
    """softmax of a over its last axis."""
    return np.exp(a - _log_sum_exp(a)[..., None])
