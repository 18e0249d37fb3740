"""Learned inference: a network E that predicts z from x, trained after G, which stays as it is.

Goodfellow et al. 2014 (arXiv 1406.2661), section 7, point 2: "Learned approximate inference can be performed by
training an auxiliary network to predict z given x. This is similar to the inference net trained by the wake-sleep
algorithm but with the advantage that the inference net may be trained for a fixed generator net after the generator
net has finished training." With d the latent numbers and f the features, E descends, by hand and through G,

    L_E = E_z ‖E(G(z)) - z‖² / d + weight · E_x ‖G(E(x)) - x‖² / f

Pairs of z and G(z) cost nothing: the first term is plain regression, and its best E is the mean of z given x. But it
shows E generated rows only. The second term, on real rows, needs no z: G itself is the judge.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from minigan.backend import Backend
from minigan.batches import Batches
from minigan.errors import Diverged, MiniganError
from minigan.gan import GAN, draw_prior
from minigan.mlp import MLP, parse_layers
from minigan.optim import Adam, linear
from minigan.options import RULES
from minigan.parallel import Alone
from minigan.vae import _in_blocks


@dataclass(eq=False)
class Encoder:
    """E, an MLP x -> z beside a trained GAN, whose averaged weights it copies: nothing of the GAN changes.

        encoder = Encoder(gan).fit()      # on the rows that the GAN was trained on, its data
        z = encoder.encode(x)             # (n, latent_dim), for x (n, features) in the data's units
        x = encoder.reconstruct(x)        # G(E(x)), as x

    It runs on the host, in the GAN's dtype, with Adam and a learning rate that falls linearly to 0. ``error_z`` and
    ``error_x`` are the two terms of the last minibatch, without the weight. Raises MiniganError, one sentence, for an
    option that makes no sense and for a GAN with labels, clusters or masks, and Diverged if training does.
    """

    gan: GAN
    layers: str = "512, relu, 512, relu"  # hidden layers: see mlp.parse_layers; the last Linear is added
    steps: int = 5000
    batch_size: int = 100  # so many z, and so many real rows
    lr: float = 0.001
    weight: float = 1.0  # of the second term
    seed: int = 0

    def __post_init__(self):
        self.gan._need_networks()
        if any(self.gan.columns_beside()):
            raise MiniganError(
                "an Encoder predicts z, and this GAN's G takes labels, clusters or masks too; give a plain one"
            )
        for names, makes_sense, wanted in RULES:
            for name in names.split():
                if hasattr(self, name) and not makes_sense(getattr(self, name)):
                    raise MiniganError(f"{name.replace('_', '-')} is {getattr(self, name)!r}; it must be {wanted}")
        if not (isinstance(self.weight, (int, float)) and 0 <= self.weight < math.inf):
            raise MiniganError(f"weight is {self.weight!r}; it must be a number, 0 or more")
        parse_layers(self.layers, 1, 1)
        self.data, self.dtype, self.E = self.gan.data, self.gan.dtype, None
        if self.data.X is not None and self.batch_size > len(self.data.X):
            raise MiniganError(f"batch size {self.batch_size} is larger than the data; use {len(self.data.X)} or less")

    def build(self):
        """Make E, a copy of the averaged G, the tapes and the random generators, and return self."""
        gan, m, features = self.gan, self.batch_size, self.data.features
        # [seed, 2]: other streams than those of the GAN, which often has the same seed
        weights, noise, order, stream = (
            np.random.Generator(np.random.SFC64(s)) for s in np.random.SeedSequence([self.seed, 2]).spawn(4)
        )
        output = "sigmoid" if self.data.image_shape else None
        self.G = MLP(parse_layers(gan.generator, gan.latent_dim, features, output), np, self.dtype)
        self.G.theta[...] = gan.backend_used.to_host(gan.averaged.flat if gan.has_average else gan.G.theta)
        self.E = MLP(parse_layers(self.layers, features, gan.latent_dim), np, self.dtype)
        self.E.initialise(weights)
        self.rng, self.grad, self.optimizer = noise, self.E.vector(), Adam(self.E.theta)
        self.tape_E, self.tape_G = self.E.tape(2 * m), self.G.tape(m)  # E: the rows G(z), then as many real ones
        self.z, self.dz = np.empty((m, gan.latent_dim), self.dtype), np.empty((2 * m, gan.latent_dim), self.dtype)
        streams = SimpleNamespace(order=order, stream=stream)
        self.batches = Batches(self.data, m, Backend("numpy"), streams, self.E.dtype, Alone())
        return self

    def fit(self):
        """Train E from the beginning and return self."""
        self.build()
        with np.errstate(over="ignore", invalid="ignore"):  # if training diverges, it is said below
            for step in range(self.steps):
                self.draw()
                self.gradient()
                self.optimizer.step(self.E.theta, self.grad.flat, linear(self.lr, 0, step, self.steps), momentum=0.9)
        if not math.isfinite(self.error_z + self.error_x):
            raise Diverged(
                f"training the Encoder diverged, most likely because the learning rate is too high (lr {self.lr:g}); "
                f"try lr={self.lr / 3:.2g}"
            )
        return self

    def draw(self):
        """The next minibatch: fresh ``z`` (m, latent_dim), and G(z) above m real rows in the network's units."""
        x = self.tape_E.x
        draw_prior(self.rng, self.z, self.gan.prior)
        x[: len(self.z)] = self.G.forward(self.z, self.tape_G)  # no dropout: as the GAN samples
        self.batches.next(out=x[len(self.z) :])

    def forward(self):
        """L_E of the minibatch, with E(G(z)) - z and G(E(x)) - x left in ``dz`` (its first m rows) and ``dx``."""
        m = len(self.z)
        z = self.E.forward(self.tape_E.x, self.tape_E, self.rng)  # rng: for dropout, if E has any
        np.subtract(z[:m], self.z, out=self.dz[:m])
        self.dx = self.G.forward(z[m:], self.tape_G) - self.tape_E.x[m:]
        self.error_z, self.error_x = (self.dz[:m] ** 2).mean(), (self.dx**2).mean()
        return self.error_z + self.weight * self.error_x

    def gradient(self):
        """dL_E/dθ_E into ``grad``: what G sends down for the real rows stands below what z itself says."""
        self.forward()
        m = len(self.z)
        self.dz[:m] *= 2 / self.z.size
        self.dz[m:] = self.G.backward(self.dx * (2 * self.weight / self.dx.size), self.tape_G)
        self.E.backward(self.dz, self.tape_E, self.grad, need_dx=False)

    def encode(self, x):
        """E(x) (n, latent_dim), float32, for x (n, features) in the data's units."""
        if self.E is None:
            raise MiniganError("this Encoder is not trained yet; call fit()")
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != self.data.features:
            raise MiniganError(f"x has shape {x.shape}; give rows of {self.data.features} numbers, as in the data")
        return _in_blocks(self.E, self.data.normalise(x)).astype(np.float32)

    def reconstruct(self, x):
        """G(E(x)) (n, features), float32; x and the result are in the data's units."""
        z = self.encode(x)
        return self.data.denormalise(_in_blocks(self.G, z)).astype(np.float32)
