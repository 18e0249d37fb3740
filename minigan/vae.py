"""A variational autoencoder, and a GAN whose generator is also its decoder, every gradient by hand.

The model draws z ~ N(0, I) and x ~ p(x|z) around decoder(z). log p(x) is an integral over z that nobody can write
down, so a second network, the encoder, gives q(z|x) = N(μ(x), diag σ²(x)), and training ascends a lower bound,

    ELBO(x) = E_q log p(x|z) - KL(q(z|x) ‖ p(z)) = log p(x) - KL(q(z|x) ‖ p(z|x))

(Kingma and Welling 2014, arXiv 1312.6114, eq. 3). z = μ + σ ε with ε ~ N(0, I) carries the gradient through the sample.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from minigan import losses
from minigan.backend import Backend, empty_batch
from minigan.batches import Batches
from minigan.data import Dataset, from_array
from minigan.errors import Diverged, MiniganError
from minigan.gan import GAN
from minigan.mlp import MLP, parse_layers
from minigan.optim import OPTIMIZERS, linear
from minigan.options import RULES
from minigan.parallel import Alone

HEADS = ("gaussian", "bernoulli")
LOG_2_PI = math.log(2 * math.pi)


@dataclass(eq=False)
class VAE:
    """An encoder x -> (μ, log σ²) of q(z|x) and a decoder z -> the mean of p(x|z), trained together.

        vae = VAE(steps=5000).fit(X)      # X (N, features), or (N, height, width) images
        vae.elbo(x)                       # (n,), nats, a lower bound of log p(x)
        x = vae.sample(64)                # (64, features), in X's units

    head "gaussian": p(x|z) = N(decoder(z), s² I) in the network's units, with one s for all, learned (``log_s2``);
    for images a sigmoid keeps the mean in [0, 1]. "bernoulli": the decoder gives logits, for data in [0, 1].
    Raises MiniganError, one sentence, for an option that makes no sense, and Diverged if training does.
    """

    encoder_layers: str = "256, relu, 256, relu"  # hidden layers: see mlp.parse_layers; the last Linear is added
    decoder_layers: str = "256, relu, 256, relu"
    latent_dim: int = 16
    head: str = "gaussian"  # or "bernoulli"
    s: float = 0.1  # the first width of p(x|z), then learned; from 1 the prior wins before the decoder has learned
    steps: int = 10_000
    batch_size: int = 64
    optimizer: str = "adam"  # or "sgd"
    lr: float = 0.001
    lr_end: float = 0.1  # the last learning rate as a fraction of the first
    momentum: float = 0.9  # of SGD; β₁ of Adam
    seed: int = 0
    dtype: str = "float32"
    report_every: int = 100

    def __post_init__(self):
        for names, makes_sense, wanted in RULES:
            for name in names.split():
                if hasattr(self, name) and not makes_sense(getattr(self, name)):
                    raise MiniganError(f"{name.replace('_', '-')} is {getattr(self, name)!r}; it must be {wanted}")
        if self.head not in HEADS:
            raise MiniganError(f"head is {self.head!r}; it must be one of {', '.join(HEADS)}")
        if not (isinstance(self.s, (int, float)) and 0 < self.s < math.inf):
            raise MiniganError(f"s is {self.s!r}; it must be a number above 0")
        for text in (self.encoder_layers, self.decoder_layers):
            parse_layers(text, 1, 1)
        self.step, self.history = 0, []
        self.data = self.encoder = self.decoder = None

    # -- One step --------------------------------------------------------------------------------------

    def train_step(self):
        """Ascend the ELBO of one minibatch in all parameters."""
        self.next_gradient()
        self.descend("encoder", "decoder", "log_s2")

    def next_gradient(self):
        """``gradient`` of the next minibatch."""
        self.batches.next(out=self.tape_encoder.x)
        with np.errstate(over="ignore", invalid="ignore"):  # if training diverges, report() says so
            self.gradient()

    def descend(self, *names):
        """One step of these parameters down the gradient of -ELBO.

        log s² takes its natural gradient, 2/features times the plain one, and at most lr of it in a step: from a first
        gradient that is a hundred times too large Adam's averages would take thousands of steps to recover.
        """
        lr = linear(self.lr, self.lr * self.lr_end, self.step, self.steps)
        for name, theta, grad in self.parameters():
            if name == "log_s2" and name in names:
                theta -= lr * np.clip(2 / self.data.features * grad, -1, 1)
            elif name in names:
                self.optimizers[name].step(theta, grad, lr, self.momentum)
        self.step += 1

    def parameters(self):
        """(name, flat parameters, flat gradient) of everything that is trained."""
        yield "encoder", self.encoder.theta, self.grad_encoder.flat
        yield "decoder", self.decoder.theta, self.grad_decoder.flat
        if self.head == "gaussian":
            yield "log_s2", self.log_s2, self.grad_log_s2

    def forward(self):
        """-ELBO, its mean over the rows on the encoder's tape, with one draw of z for each."""
        latent, eps = self.latent_dim, self.eps
        out = self.encoder.forward(self.tape_encoder.x, self.tape_encoder, self.rng_dropout)  # (m, 2 latent)
        mu, log_sigma2 = out[:, :latent], out[:, latent:]
        self.draw_eps(eps)
        np.exp(log_sigma2 / 2, out=self.sigma)
        np.multiply(self.sigma, eps, out=self.tape_decoder.x)
        self.tape_decoder.x += mu  # z = μ + σ ε
        self.decoder.forward(self.tape_decoder.x, self.tape_decoder, self.rng_dropout)
        x = self.tape_encoder.x
        self.reconstruction = -log_likelihood(x, self.tape_decoder.out, self.head, self.log_s2).mean()
        self.divergence = kl_to_prior(mu, log_sigma2).mean()
        return self.reconstruction + self.divergence

    def gradient(self):
        """d(-ELBO)/dθ of encoder, decoder and log s² into ``grad_*``, for the rows on the encoder's tape.

        Down the decoder comes dz. z = μ + σ ε hands dz to μ, and dz σ ε / 2 to log σ²; the KL adds μ/m and
        (σ² - 1) / 2m, for it is ½ Σ (μ² + σ² - 1 - log σ²).
        """
        self.forward()
        latent, m, x = self.latent_dim, len(self.eps), self.tape_encoder.x
        mu, dout, dmu = self.tape_encoder.out[:, :latent], self.dout_decoder, self.dout_encoder[:, :latent]
        if self.head == "gaussian":
            np.subtract(self.tape_decoder.out, x, out=dout)
            squares = dout * dout
            s2 = np.exp(self.log_s2)
            self.grad_log_s2[...] = (x.shape[1] - squares.sum() / (s2 * m)) / 2
            dout *= 1 / (s2 * m)
        else:
            np.subtract(losses.sigmoid(self.tape_decoder.out), x, out=dout)
            dout *= 1 / m
        dz = self.decoder.backward(dout, self.tape_decoder, self.grad_decoder)
        np.add(dz, mu / m, out=dmu)
        dlog_sigma2 = self.dout_encoder[:, latent:]
        np.multiply(dz, self.eps, out=dlog_sigma2)
        dlog_sigma2 *= self.sigma
        dlog_sigma2 += (self.sigma**2 - 1) / m
        dlog_sigma2 *= 0.5
        self.encoder.backward(self.dout_encoder, self.tape_encoder, self.grad_encoder, need_dx=False)

    def draw_eps(self, eps):
        """Fill eps (m, latent_dim) with standard normal numbers, in place."""
        self.rng_noise.standard_normal(dtype=eps.dtype, out=eps)

    # -- What a person sees ----------------------------------------------------------------------------

    fit = GAN.fit  # the same loop over train_step and report

    def report(self):
        """The last minibatch's numbers, in nats and the network's units: step, elbo, reconstruction and kl (elbo is
        minus their sum), s (None without one). Raises Diverged if the bound is no longer finite."""
        elbo = -float(self.reconstruction + self.divergence)
        if not math.isfinite(elbo):
            raise Diverged(
                f"training diverged before step {self.step}: the bound is not a finite number, most likely because the "
                f"learning rate is too high (lr {self.lr:g}); try lr={self.lr / 3:.2g}"
            )
        s = math.exp(self.log_s2[0] / 2) if self.head == "gaussian" else None
        numbers = {"step": self.step, "elbo": elbo, "reconstruction": float(self.reconstruction)}
        return {**numbers, "kl": float(self.divergence), "s": s}

    def elbo(self, x, draws=1, seed=0):
        """A lower bound of log p(x) (n,), nats, of each row of x (n, features), in the data's units.

        The ELBO by ``draws`` draws of z. For "bernoulli" p(x|z) is a probability of binary x, not a density.
        """
        return self._bound(x, draws, seed).mean(0)

    def log_likelihood(self, x, draws=100, seed=0):
        """log (1/draws) Σ p(x|z) p(z) / q(z|x), z ~ q(z|x), as ``elbo``: a tighter bound, on average below log p(x).

        It tends to log p(x) as draws grow (Burda, Grosse and Salakhutdinov 2016, arXiv 1509.00519, theorem 1).
        """
        terms = self._bound(x, draws, seed, sampled=True)
        largest = terms.max(0)
        return np.log(np.exp(terms - largest).mean(0)) + largest

    def _bound(self, x, draws, seed, sampled=False):
        """log p(x|z) - KL, or if sampled log p(x|z) p(z) / q(z|x), in the data's units: (draws, n) float64."""
        rng, x = np.random.default_rng(seed), self._normalised(x)
        mu, log_sigma2 = self.encode(x)
        terms = np.empty((draws, len(x)))
        for row in terms:
            eps = rng.standard_normal(mu.shape)
            z = mu + np.exp(log_sigma2 / 2) * eps
            row[...] = log_likelihood(x, self._decoder_output(z), self.head, self.log_s2)
            if sampled:  # log p(z) - log q(z|x)
                row += (eps**2 - z**2 + log_sigma2).sum(1) / 2
            else:
                row -= kl_to_prior(mu, log_sigma2)
        if self.head == "gaussian":
            terms -= np.log(self.data.divisor, dtype=np.float64).sum()
        return terms

    def encode(self, x):
        """(μ, log σ²) of q(z|x), both (n, latent_dim) float64, for x (n, features) in the network's units."""
        self._need_networks()
        out = _in_blocks(self.encoder, x)
        return out[:, : self.latent_dim], out[:, self.latent_dim :]

    def decode(self, z):
        """The mean of p(x|z) (n, features), float32, in the data's units, for z (n, latent_dim)."""
        self._need_networks()
        out = self._decoder_output(z)
        x = losses.sigmoid(out) if self.head == "bernoulli" else out
        return self.data.denormalise(x).astype(np.float32)

    def _decoder_output(self, z):
        return _in_blocks(self.decoder, z)

    def reconstruct(self, x):
        """x -> the mean of q(z|x) -> the mean of p(x|z), (n, features), all in the data's units."""
        return self.decode(self.encode(self._normalised(x))[0])

    def sample(self, n, seed=0, noise=False):
        """n samples (n, features), float32, in the data's units: z from the prior, then the mean of p(x|z).

        noise=True draws from p(x|z) itself, as the model has it; its mean is what people show as a sample.
        """
        rng = np.random.default_rng(seed)
        x = self.decode(rng.standard_normal((n, self.latent_dim)))
        if not noise:
            return x
        if self.head == "bernoulli":
            return (rng.random(x.shape) < x).astype(np.float32)
        s = np.exp(self.log_s2 / 2) * self.data.scale
        return (x + s * rng.standard_normal(x.shape)).astype(np.float32)

    def _normalised(self, x):
        """x (n, features) in the network's units, or MiniganError for another shape."""
        self._need_networks()
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != self.data.features:
            raise MiniganError(f"x has shape {x.shape}; give rows of {self.data.features} numbers, as in the data")
        return self.data.normalise(x)

    def _need_networks(self):
        if self.encoder is None:
            raise MiniganError("this VAE has no networks yet; call fit(X), or build(X) to make untrained ones")

    # -- Construction ----------------------------------------------------------------------------------

    def build(self, X, decoder=None):
        """Make networks, optimisers, tapes and random generators for X, and return self.

        decoder: an MLP, latent_dim -> features, to use instead of a new one.
        """
        self.data = data = X if isinstance(X, Dataset) else from_array(X)
        if data.X is not None and self.batch_size > len(data.X):
            raise MiniganError(
                f"batch size {self.batch_size} is larger than the data ({len(data.X)} rows); "
                f"use batch_size={len(data.X)} or less"
            )
        if self.head == "bernoulli" and not data.image_shape:
            raise MiniganError("head 'bernoulli' is for data in [0, 1]; give images, or use head='gaussian'")
        # [seed, 1]: other streams than those of a GAN with the same seed, which a VAE-GAN holds beside them
        rngs = [np.random.Generator(np.random.SFC64(s)) for s in np.random.SeedSequence([self.seed, 1]).spawn(5)]
        rng_weights, self.rng_noise, self.rng_dropout = rngs[0], rngs[1], rngs[4]
        latent, m = self.latent_dim, self.batch_size
        output = "sigmoid" if data.image_shape and self.head == "gaussian" else None
        self.encoder = MLP(parse_layers(self.encoder_layers, data.features, 2 * latent), np, self.dtype)
        self.encoder.initialise(rng_weights, "glorot")
        self.decoder = decoder
        if decoder is None:
            self.decoder = MLP(parse_layers(self.decoder_layers, latent, data.features, output), np, self.dtype)
            self.decoder.initialise(rng_weights, "glorot")
        self.log_s2, self.grad_log_s2 = np.full((2, 1), 2 * math.log(self.s), self.dtype)
        self.grad_encoder, self.grad_decoder = self.encoder.vector(), self.decoder.vector()
        self.tape_encoder, self.tape_decoder = self.encoder.tape(m), self.decoder.tape(m)
        self.eps, self.sigma = np.empty((2, m, latent), self.dtype)
        self.dout_encoder = empty_batch(np, (m, 2 * latent), self.dtype)
        self.dout_decoder = empty_batch(np, (m, data.features), self.dtype)
        self.optimizers = {name: OPTIMIZERS[self.optimizer](theta) for name, theta, _ in self.parameters()}
        streams = SimpleNamespace(order=rngs[2], stream=rngs[3])
        self.batches = Batches(data, m, Backend("numpy"), streams, self.encoder.dtype, Alone())
        self.step, self.history = 0, []
        return self


def log_likelihood(x, out, head, log_s2=None):
    """log p(x|z) (n,), nats, for x and the decoder's ``out``, both (n, features) in the network's units."""
    if head == "gaussian":  # log N(x; out, s² I)
        d = x - out
        return -((d * d).sum(1) / np.exp(log_s2) + x.shape[1] * (LOG_2_PI + log_s2)) / 2
    return (x * out - losses.softplus(out)).sum(1)  # log of σ(out)^x (1 - σ(out))^(1 - x)


def kl_to_prior(mu, log_sigma2):
    """KL(N(μ, diag σ²) ‖ N(0, I)) (n,), nats: ½ Σ (μ² + σ² - 1 - log σ²) (Kingma and Welling 2014, appendix B)."""
    return (mu * mu + np.exp(log_sigma2) - 1 - log_sigma2).sum(1) / 2


def _in_blocks(net, x, block=1024):
    """The output of net (n, n_out), float64, for rows x of any number."""
    out, tape = np.empty((len(x), net.n_out)), net.tape(min(block, len(x)))
    for i in range(0, len(x), block):
        rows = x[i : i + block]
        out[i : i + block] = net.forward(rows, tape[: len(rows)])
    return out


# -- VAE-GAN -----------------------------------------------------------------------------------------------


class VAEGAN(GAN):
    """A GAN whose generator G is also the decoder of a VAE, after Larsen et al. 2016, arXiv 1512.09300.

    Which loss reaches which network, in each iteration:

        D          -V̂ and R1, on real rows and on G(z), z from the prior
        encoder    -ELBO, through G as the decoder; nothing adversarial
        G          L_G, through D, on G(z) with fresh z, plus ``elbo_weight`` times -ELBO, on reconstructions

    Larsen et al. measure reconstructions in a hidden layer of D, and show them to D as well; here the ELBO stays that
    of the pixels. Options, ``fit``, ``sample`` and the rest are GAN's; ``vae`` is the VAE, which has ``encoder_layers``
    and ``lr_encoder`` of Adam. ``checkpoint.save`` keeps its GAN, not the encoder. Raises MiniganError for another
    prior, update or backend than the default's, for conditional=True or clusters, or for a negative weight.
    """

    def __init__(self, encoder_layers="256, relu, 256, relu", elbo_weight=0.01, lr_encoder=0.001, **options):
        super().__init__(**{"backend": "numpy", **options})
        fixed = {"update": "alternating", "prior": "normal", "backend": "numpy", "conditional": False, "clusters": 0}
        if any(getattr(self, name) != v for name, v in fixed.items()):
            raise MiniganError(
                f"a VAE-GAN has {', '.join(f'{name} {v!r}' for name, v in fixed.items())}; leave them so"
            )
        if not (isinstance(elbo_weight, (int, float)) and 0 <= elbo_weight < math.inf):
            raise MiniganError(f"elbo-weight is {elbo_weight!r}; it must be a number, 0 or more")
        self.elbo_weight = elbo_weight
        self.vae = VAE(
            encoder_layers, self.generator, self.latent_dim, steps=self.steps, batch_size=self.batch_size,
            lr=lr_encoder, seed=self.seed, dtype=self.dtype,
        )  # fmt: skip

    def build(self, X, start=True):
        """As GAN.build, and the encoder."""
        super().build(X, start)
        self.vae.build(self.data, decoder=self.G)
        return self

    def generator_gradient(self):
        """d(L_G - elbo_weight ELBO)/dθ_G into ``grad_G``, and the encoder's own, d(-ELBO), into the VAE's."""
        super().generator_gradient()
        self.vae.next_gradient()
        share = self.vae.grad_decoder.flat
        share *= self.elbo_weight
        self.grad_G.flat += share

    def _descend_G(self):
        super()._descend_G()
        self.vae.descend("encoder", "log_s2")

    def reconstruct(self, x):
        """x -> the encoder's mean -> G, (n, features), in the data's units, by the last weights, not their average."""
        return self.vae.reconstruct(x)
