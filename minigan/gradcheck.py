"""Are the hand-written gradients right? Compare them with two that need no calculus.

    central differences   (f(x + h) - f(x - h)) / 2h, in float64 with h = 1e-5
    complex step          Im f(x + ih) / h, with h = 1e-30: no subtraction, so exact to rounding, wherever the
                          forward pass is analytic (Squire and Trapp 1998, eq. 4)

The upstream gradient is random, because ones can hide errors that cancel. The error of a tensor is
max|analytic - numerical| / max(|analytic|, |numerical|). ReLU, LeakyReLU and Maxout have kinks, where a difference
quotient means nothing: inputs are drawn anew until every kink is further away than a step can reach.

    python -m minigan gradcheck          prints the table and exits with 1 if any row fails
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from minigan import layers as L
from minigan import losses
from minigan.backend import Backend
from minigan.data import from_array
from minigan.errors import MiniganError
from minigan.gan import GAN
from minigan.inference import Encoder
from minigan.masked import MaskedGAN
from minigan.mixture import GaussianMixture
from minigan.mlp import MLP
from minigan.options import PRIORS, UPDATES
from minigan.vae import VAE, VAEGAN

LIMITS = {"central differences": 1e-6, "complex step": 1e-12}  # for assembled networks
SINGLE_LIMITS = {"central differences": 1e-8, "complex step": 1e-12}
JUDGEABLE = {"central differences": 1e-3, "complex step": 1e-4}  # the smallest gradient of a tensor that is judged
ROUNDING = 1e-12  # of a loss near 1: a gradient below it cannot be told from zero
KINK_MARGIN = 2e-3  # of a pre-activation from its kink; a step of 1e-5 in a weight moves it far less


@dataclass
class Check:
    """One row of the table: ``error`` is the worst relative error found, which must not exceed ``tolerance``."""

    name: str
    method: str
    error: float
    tolerance: float

    @property
    def passed(self):
        return bool(self.error <= self.tolerance)  # False for nan


def central_difference(f, x, h=1e-5):
    """df/dx for a scalar function f() of the array x, which is perturbed in place and restored."""
    gradient = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        old = x[i].copy()
        x[i] = old + h
        above = float(f())
        x[i] = old - h
        gradient[i] = (above - float(f())) / (2 * h)
        x[i] = old
    return gradient


def complex_step(f, x, h=1e-30):
    """df/dx for an analytic scalar function f() of the complex array x, perturbed in place and restored."""
    gradient = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        old = x[i].copy()
        x[i] = old + 1j * h
        gradient[i] = complex(f()).imag / h
        x[i] = old
    return gradient


METHODS = {"f": ("central differences", central_difference), "c": ("complex step", complex_step)}  # by dtype.kind


def relative_error(analytic, numerical):
    """max|a - b| / max(|a|, |b|) over a tensor; 0 if both are zero, nan if either is not finite."""
    scale = max(np.abs(analytic).max(), np.abs(numerical).max())
    return 0.0 if scale == 0 else float(np.abs(analytic - numerical).max() / scale)


def worst_error(grad, numerical, host, judgeable=0.0):
    """The largest relative error over the tensors of a gradient (Vector), given its numerical one (size,).

    None if some tensor's numerical gradient is not zero but all of it is smaller than ``judgeable``; or if it is zero
    where the analytic one is rounding, as behind a saturated tanh.
    """
    errors, start = [], 0
    for tensor in (view for views in grad.layers for view in views):
        expected = numerical[start : start + tensor.size].reshape(tensor.shape)
        start += tensor.size
        largest, found = np.abs(expected).max(), np.abs(host(tensor)).max()
        if 0 < largest < judgeable or (judgeable and largest == 0 < found < ROUNDING):
            return None
        errors.append(relative_error(host(tensor), expected))
    return max(errors, default=0.0)


def kink_distance(net, tape):
    """The smallest distance of a pre-activation on the tape from a kink; infinity if no layer has any."""
    xp, distance = net.xp, float("inf")
    for layer, x, c in zip(net.layers, tape.inputs, tape.buffers, strict=True):
        if isinstance(layer, L.LeakyReLU):
            distance = min(distance, float(xp.abs(x).min()))
        if isinstance(layer, L.Maxout) and layer.pieces > 1:
            a = xp.sort(c.affine.out.reshape(len(x), layer.pieces, layer.n_out), axis=1)
            distance = min(distance, float((a[:, -1] - a[:, -2]).min()))
    return distance


# -- One network: layers, tangents, R1 ---------------------------------------------------------------------


def check_layer(make, name, tolerance, seed=0, backend=None):
    """The gradients of one layer, made by ``make(n_in, xp)``, by each method, and its tangent: a row for each."""
    backend = backend or Backend("numpy")
    xp, host, rng = backend.xp, backend.to_host, np.random.default_rng(seed)
    net = MLP([make(5, xp)], xp, np.float64)
    tape, grad = net.tape(4), net.vector()

    def draw(*shape):
        return backend.to_device(rng.standard_normal(shape))

    def output(net, tape):
        """The dropout mask is the same each time."""
        return net.forward(tape.x, tape, backend.generator(np.random.SeedSequence(seed)))

    net.theta[...] = draw(net.theta.size)
    while True:
        tape.x[...] = draw(4, 5)
        output(net, tape)
        if kink_distance(net, tape) > KINK_MARGIN:
            break
    dout, xdot = draw(4, net.n_out), draw(4, 5)
    dx = host(net.backward(dout, tape, grad)).copy()
    forward_mode = float((net.tangent(xdot, tape) * dout).sum())
    backward_mode = float((host(xdot) * dx).sum())
    rows = [Check(name, "tangent = xdot·dx", abs(forward_mode / backward_mode - 1), 1e-12)]

    for twin in [net, _complex_twin(net)] if xp is np else [net]:
        twin_tape = twin.tape(4)
        twin_tape.x[...] = tape.x
        loss = lambda twin=twin, tape=twin_tape: (output(twin, tape) * dout).sum()
        method, derivative = METHODS[twin.dtype.kind]
        error = relative_error(dx, derivative(loss, twin_tape.x))
        error = max(error, worst_error(grad, derivative(loss, twin.theta), host))
        rows.append(Check(name, method, error, 1e-12 if twin is not net else tolerance))
    return rows


def check_penalty(text, seed=0, backend=None, tolerance=1e-6):
    """R1's gradient for a discriminator whose hidden layers are ``text``, and the value it reports."""
    options = dict(generator="", discriminator=text, r1=0.7, batch_size=5, latent_dim=2)
    gan, x_real, hold = _held_gan(options, np.random.default_rng(seed), 3, backend)
    D, tape, grad = gan.D, gan.D.tape(5), gan.D.vector()
    penalty = losses.GradientPenalty(D, 5)

    def loss():
        hold()
        D.forward(x_real, tape, gan.rng.dropout)
        return penalty_value(D, tape, gan.r1)

    value = float(loss())
    norms = penalty.add_gradient(tape, gan.r1, grad)
    error = worst_error(grad, central_difference(loss, D.theta), gan.backend_used.to_host)
    error = max(error, relative_error(np.array(float(norms.sum()) / 2), np.array(value)))
    return Check(f"R1 through {text or 'one Linear layer'}", "central differences", error, tolerance)


def penalty_value(D, tape, gamma, features=None):
    """γ/2 · mean‖∇ₓ s‖² on a tape whose forward pass is done, a scalar; x is the first ``features`` columns."""
    v = D.backward(D.xp.ones((len(tape.x), 1), D.dtype), tape)[:, :features]
    return gamma / 2 * (v * v).sum() / len(v)


# -- The losses --------------------------------------------------------------------------------------------


def check_losses(seed=0):
    """dloss/dlogits of every loss by both methods; the loss value is then the integral of its gradient."""
    rng = np.random.default_rng(seed)
    m = 6
    s, z = rng.standard_normal((2 * m, 1)) * 3, np.empty((2 * m, 1), complex)
    labels = np.repeat([1.0, 0.0], m)[:, None]
    loss_D = losses.DiscriminatorLoss(m, dtype=np.float64)
    pairs = {
        "D's loss, -V": (loss_D, lambda s, out: loss_D.gradient(s, out)),
        "2 BCE on labels": (lambda s: 2 * losses.bce(s, labels), lambda s, out: loss_D.gradient(s, out)),
    }
    for kind in losses.LOSSES:
        pairs[f"G's loss, {kind}"] = (
            lambda s, kind=kind: losses.generator_loss(s, kind),
            lambda s, out, kind=kind: losses.generator_gradient(s, out, kind),
        )
    classes, shape = np.array([0, 2, 1, 2]), (4, 3)  # the same numbers as logits of four rows and three classes
    pairs["cross-entropy of a classifier"] = (
        lambda s: losses.cross_entropy(s.reshape(shape), classes),
        lambda s, out: losses.cross_entropy_gradient(s.reshape(shape), classes, out.reshape(shape)).reshape(s.shape),
    )
    rows = []
    for name, (f, gradient) in pairs.items():
        ds = gradient(s, np.empty_like(s))
        z[...] = s
        numerical = central_difference(lambda f=f: f(s), s)
        rows.append(Check(name, "central differences", relative_error(ds, numerical), 1e-8))
        rows.append(Check(name, "complex step", relative_error(ds, complex_step(lambda f=f: f(z), z)), 1e-12))
    return rows


# -- The assembled training step ---------------------------------------------------------------------------


def check_gan(options, rng, features, backend=None):
    """Relative errors of the gradients that the training step itself computes, a dict: D's step and G's, through D,
    each against central differences and (on NumPy) the complex step.

    D has moved by one step before G's gradient is taken, as in training. Central differences of a loss near 1 carry
    rounding errors of about 1e-11, so of a tensor whose whole gradient is small they get few digits right; and where
    the terms of the hand-written gradient nearly cancel, it has few digits itself. Below JUDGEABLE the error is None.
    """
    gan, x_real, hold = _held_gan(options, rng, features, backend)
    host = gan.backend_used.to_host

    def generate(G):
        x_fake = G.forward(gan.z_held, G.tape(gan.batch_size), gan.rng.dropout)
        return gan.xp.concatenate([x_fake, x_real[:, features:]], axis=1)  # its labels, if there are any

    def loss_D(G, D):
        x_fake = generate(G)
        tape = D.tape(2 * gan.batch_size)
        loss = gan.loss_D(D.forward(gan.xp.concatenate([x_real, x_fake]), tape, gan.rng.dropout))
        for gamma, rows in ((gan.r1, slice(0, gan.batch_size)), (gan.r2, slice(gan.batch_size, None))):
            loss += penalty_value(D, tape[rows], gamma, features) if gamma else 0.0
        return loss

    def loss_G(G, D):
        x_fake = generate(G)
        if gan.update == "simultaneous":  # the same masks as in the step: D sees real and fake in one batch
            x, n = gan.xp.concatenate([x_real, x_fake]), gan.batch_size
        else:
            x, n = x_fake, 0
        return losses.generator_loss(D.forward(x, D.tape(len(x)), gan.rng.dropout)[n:], gan.loss, gan.xp)

    def compare(grad, f, G, D, theta):
        """``theta`` is the flat vector of G or of D, to be perturbed."""

        def held():
            hold()
            return f(G, D)

        method, derivative = METHODS[theta.dtype.kind]
        return method, worst_error(grad, derivative(held, theta), host, JUDGEABLE[method])

    errors = {}
    for network, f in (("D", loss_D), ("G", loss_G)):
        hold()
        if gan.update == "simultaneous":
            gan.simultaneous_gradients(x_real)
        elif network == "D":
            gan.discriminator_gradient(x_real)
        else:
            gan._descend_D()
            hold()
            gan.generator_gradient()
        grad, real = (gan.grad_D if network == "D" else gan.grad_G), {"G": gan.G, "D": gan.D}
        for nets in [real, {name: _complex_twin(net) for name, net in real.items()}] if gan.xp is np else [real]:
            method, error = compare(grad, f, nets["G"], nets["D"], nets[network].theta)
            errors[network, method] = error
    return errors


def _complex_twin(net):
    """The same network with complex128 weights. Layers hold sizes only, so the two can share them."""
    twin = MLP(net.layers, net.xp, np.complex128)
    twin.theta[...] = net.theta
    return twin


def _held_gan(options, rng, features, backend=None):
    """(a float64 GAN with random weights and biases, a real batch, hold()), away from all kinks.

    hold() seeds the generators of z and dropout anew, so that each pass after it sees the same of both.
    """
    n, name = options["batch_size"], (backend or Backend("numpy")).name
    for _ in range(2000):
        images = rng.random() < 0.3
        X = (rng.random if images else rng.standard_normal)((n, features)).astype(np.float32)
        data = from_array(X, rng.integers(0, 3, n), image_shape=(1, features) if images else None)
        gan = GAN(**options, lr=0.01, init_D="he", dtype="float64", backend=name, seed=int(rng.integers(2**31))).build(
            data
        )
        for net in (gan.G, gan.D):
            net.theta[...] += gan.backend_used.to_device(0.3 * rng.standard_normal(net.theta.size))
        x_real = data.normalise(X).astype(np.float64)
        if gan.conditional:
            x_real = np.concatenate([x_real, data.one_hot(data.labels)], axis=1)
        x_real = gan.backend_used.to_device(x_real)

        def hold(gan=gan):
            for purpose, seed in (("noise", 1), ("dropout", 2)):
                setattr(gan.rng, purpose, gan.backend_used.generator(np.random.SeedSequence([gan.seed, seed])))

        theta_D = gan.D.theta.copy()
        hold()
        gan.discriminator_gradient(x_real)
        gan.z_held = gan.tape_G.x.copy()  # z, and the labels behind it if there are any
        near = min(kink_distance(gan.D, gan.tape_D), kink_distance(gan.G, gan.tape_G))
        gan._descend_D()
        hold()
        gan._forward_real_and_fake(x_real)
        near = min(near, kink_distance(gan.D, gan.tape_D))
        hold()
        gan.generator_gradient()
        near = min(near, kink_distance(gan.D, gan.tape_DG))
        gan.D.theta[...] = theta_D
        if near > KINK_MARGIN:
            gan.optimizer_D.state["velocity"][...] = 0
            return gan, x_real, hold
    raise MiniganError(f"no batch of {n} rows away from all kinks was found in 2000 draws; use a smaller network")


def random_options(rng):
    """Options of a random small GAN: depth, width, layers, prior, loss, update, batch and penalties."""
    # Fourier layers of more octaves, one behind the other, magnify rounding beyond what the complex step may show.
    layers = ["relu", "leaky_relu 0.2", "tanh", "sigmoid", "maxout", "dropout 0.7", "fourier 1"]

    def network():
        parts = []
        for _ in range(rng.integers(0, 4)):
            kind = layers[rng.integers(len(layers))]
            width = int(rng.integers(1, 6))
            if kind == "maxout":
                parts.append(f"maxout {width}x{rng.integers(1, 4)}")
            elif kind.startswith(("dropout", "fourier")):
                parts.append(kind)
            else:
                parts += [str(width), kind]
        return ", ".join(parts)

    def one_of(names):
        return names[rng.integers(len(names))]

    return dict(
        generator=network(), discriminator=network(), latent_dim=int(rng.integers(1, 5)), prior=one_of(PRIORS),
        batch_size=int(rng.integers(1, 6)), loss=one_of(losses.LOSSES), update=one_of(UPDATES),
        r1=one_of([0.0, 0.1, 2.0]), r2=one_of([0.0, 0.0, 0.3]), conditional=one_of([False, False, True]),
    )  # fmt: skip


def check_random_gans(count, seed=0, backend=None):
    """The assembled step of ``count`` random architectures: a row for each network and method, the worst of all.

    Where central differences could not judge an architecture, another one is drawn, so each row counts in full.
    """
    rng, worst, judged = np.random.default_rng(seed), {}, {}
    while not judged or min(judged.values()) < count:
        for key, error in check_gan(random_options(rng), rng, int(rng.integers(1, 5)), backend).items():
            worst.setdefault(key, []).append(error) if error is not None else None
            judged[key] = len(worst.get(key, ()))
    names = {"D": "D's step: real and fake, R1, R2", "G": "G's step, through D"}
    return [
        Check(f"{names[network]}; {len(errors)} random networks", method, max(errors), LIMITS[method])
        for (network, method), errors in worst.items()
    ]


# -- The other models --------------------------------------------------------------------------------------


def check_mixture(seed=0):
    """The gradient of the mixture's mean log-likelihood in weights, means and covariances: a row for each method."""
    rng, rows = np.random.default_rng(seed), []
    mixture, x = GaussianMixture(3).build(2), rng.standard_normal((5, 2))
    mixture.theta[...] = rng.standard_normal(mixture.theta.size)
    grad = mixture.gradient(x)
    for dtype in (float, complex):
        twin = GaussianMixture(3).build(2, dtype)
        twin.theta[...] = mixture.theta
        method, derivative = METHODS[twin.theta.dtype.kind]
        numerical = derivative(lambda twin=twin: twin.log_density(x).mean(), twin.theta)
        error = worst_error(grad, numerical, np.asarray)
        rows.append(Check("Gaussian mixture's log-likelihood", method, error, SINGLE_LIMITS[method]))
    return rows


def check_vae(head, images, seed=0):
    """The gradient of -ELBO in encoder, decoder and log s²: a row for each network and method."""
    rng = np.random.default_rng(seed)
    data = from_array(rng.random((4, 3)), image_shape=(1, 3) if images else None)
    layers = "5, tanh, dropout 0.7, 4, leaky_relu 0.2"
    options = dict(encoder_layers=layers, decoder_layers=layers)
    held = SimpleNamespace(random=lambda dtype, out: np.random.default_rng(seed).random(dtype=dtype, out=out))
    while True:
        vae = VAE(**options, latent_dim=2, head=head, s=0.7, batch_size=4, dtype="float64").build(data)
        for _, theta, _ in vae.parameters():
            theta[...] += 0.5 * rng.standard_normal(theta.size)
        eps = rng.standard_normal((4, 2))
        vae.draw_eps, vae.rng_dropout = lambda out, eps=eps: np.copyto(out, eps), held  # the same in each pass
        vae.next_gradient()
        near = kink_distance(vae.encoder, vae.tape_encoder), kink_distance(vae.decoder, vae.tape_decoder)
        if min(near) > KINK_MARGIN:
            break
    twin = VAE(**options, latent_dim=2, head=head, batch_size=4)
    twin.dtype, twin.draw_eps = "complex128", vae.draw_eps
    twin.build(data).tape_encoder.x[...] = vae.tape_encoder.x
    twin.rng_dropout = held
    for (_, theta, _), (_, original, _) in zip(twin.parameters(), vae.parameters(), strict=True):
        theta[...] = original
    rows = []
    for model in (vae, twin):
        for name, theta, _ in model.parameters():
            method, derivative = METHODS[theta.dtype.kind]
            numerical, grad = derivative(model.forward, theta), getattr(vae, f"grad_{name}")
            error = relative_error(grad, numerical) if name == "log_s2" else worst_error(grad, numerical, np.asarray)
            title = f"VAE's ELBO, {head}{', images' * images}: {name}"
            rows.append(Check(title, method, error, LIMITS[method]))
    return rows


def check_vae_gan(seed=0):
    """The gradients of a VAE-GAN's generator step: G's is L_G's and the ELBO's together, the encoder's the ELBO's."""
    rng = np.random.default_rng(seed)
    gan = VAEGAN(
        encoder_layers="4, tanh", generator="4, tanh", discriminator="4, tanh", latent_dim=2, batch_size=5,
        elbo_weight=0.3, init_D="he", dtype="float64",
    ).build(from_array(rng.standard_normal((5, 3))))  # fmt: skip
    z, eps = rng.standard_normal((2, 5, 2))
    gan.draw_z, gan.vae.draw_eps = lambda: z, lambda out: np.copyto(out, eps)
    gan.generator_gradient()

    def loss_G():
        logits = gan.D.forward(gan.G.forward(z, gan.tape_G), gan.tape_DG)
        return losses.generator_loss(logits, gan.loss) + gan.elbo_weight * gan.vae.forward()

    pairs = {"G": (gan.grad_G, loss_G, gan.G), "encoder": (gan.vae.grad_encoder, gan.vae.forward, gan.vae.encoder)}
    method, limit = "central differences", LIMITS["central differences"]
    return [
        Check(f"VAE-GAN's step: {name}", method, worst_error(grad, central_difference(f, net.theta), np.asarray), limit)
        for name, (grad, f, net) in pairs.items()
    ]


def check_masked(seed=0):
    """The gradients of a MaskedGAN's two steps, D's with R1: a row for each network and method."""
    rng = np.random.default_rng(seed)
    x, z, mask = rng.standard_normal((5, 3)), rng.standard_normal((5, 2)), rng.integers(0, 2, (5, 3))
    gan = MaskedGAN(
        generator="4, tanh", discriminator="4, tanh", latent_dim=2, batch_size=5, r1=0.3, init_D="he", dtype="float64"
    ).build(from_array(x))
    gan.draw_z = lambda: z
    gan.discriminator_gradient(np.concatenate([x, mask], axis=1))
    gan.generator_gradient()

    def judged(G, D, tape):
        """D's logits (10, 1) of the real rows above the filled-in ones."""
        x_hat = mask * x + (1 - mask) * G.forward(np.concatenate([z, mask * x, mask], axis=1), G.tape(5))
        return D.forward(np.concatenate([np.concatenate([x, x_hat]), np.tile(mask, (2, 1))], axis=1), tape)

    def loss_D(G, D):
        tape = D.tape(10)
        return gan.loss_D(judged(G, D, tape)) + penalty_value(D, tape[:5], gan.r1, 3)

    def loss_G(G, D):
        return losses.generator_loss(judged(G, D, D.tape(10))[5:], gan.loss)

    rows, real = [], {"G": gan.G, "D": gan.D}
    for nets in (real, {name: _complex_twin(net) for name, net in real.items()}):
        for name, loss, grad in (("D", loss_D, gan.grad_D), ("G", loss_G, gan.grad_G)):
            theta = nets[name].theta
            method, derivative = METHODS[theta.dtype.kind]
            numerical = derivative(lambda loss=loss, nets=nets: loss(**nets), theta)
            rows.append(
                Check(f"masked GAN's step: {name}", method, worst_error(grad, numerical, np.asarray), LIMITS[method])
            )
    return rows


def check_encoder(seed=0):
    """The gradient of an Encoder's L_E, whose second term comes through G: a row for each method."""
    rng = np.random.default_rng(seed)
    data = from_array(rng.random((4, 3)), image_shape=(1, 3))
    options = dict(generator="4, tanh, 4, leaky_relu 0.2", latent_dim=2, batch_size=4, dtype="float64")
    while True:
        gan = GAN(**options, backend="numpy", seed=int(rng.integers(2**31))).build(data)
        encoder = Encoder(gan, "5, tanh, 4, leaky_relu 0.2", batch_size=4, weight=0.7).build()
        encoder.E.theta[...] += 0.5 * rng.standard_normal(encoder.E.theta.size)
        encoder.G.theta[...] += 0.5 * rng.standard_normal(encoder.G.theta.size)
        encoder.draw()
        encoder.gradient()
        near = kink_distance(encoder.E, encoder.tape_E), kink_distance(encoder.G, encoder.tape_G)
        if min(near) > KINK_MARGIN:
            break
    twin = Encoder(gan, encoder.layers, batch_size=4, weight=0.7)
    twin.dtype = "complex128"
    twin.build().E.theta[...] = encoder.E.theta
    twin.G.theta[...], twin.z[...], twin.tape_E.x[...] = encoder.G.theta, encoder.z, encoder.tape_E.x
    rows = []
    for model in (encoder, twin):
        method, derivative = METHODS[model.E.theta.dtype.kind]
        error = worst_error(encoder.grad, derivative(model.forward, model.E.theta), np.asarray)
        rows.append(Check("Encoder's L_E, through G", method, error, LIMITS[method]))
    return rows


# -- The table ---------------------------------------------------------------------------------------------

LAYERS = {
    "Linear": lambda n, xp: L.Linear(n, 3, xp),
    "Maxout": lambda n, xp: L.Maxout(n, 3, 4, xp),
    "Dropout": lambda n, xp: L.Dropout(n, 0.6, xp),
    "ReLU": lambda n, xp: L.ReLU(n, xp),
    "LeakyReLU": lambda n, xp: L.LeakyReLU(n, 0.2, xp),
    "Tanh": lambda n, xp: L.Tanh(n, xp),
    "Sigmoid": lambda n, xp: L.Sigmoid(n, xp),
    "Fourier": lambda n, xp: L.Fourier(n, 3, xp),
    "Fourier beside labels": lambda n, xp: L.Fourier(n, 3, xp, beside=2),
}


PENALISED = (
    "",
    "4, relu, 4, leaky_relu 0.2",
    "maxout 4x3, maxout 3x2",
    "4, tanh, 3, tanh",
    "4, sigmoid, 3, sigmoid",
    "6, tanh, dropout 0.8, maxout 4x2, 4, sigmoid",
    "fourier 3, 6, relu, 2, fourier 2, 3, tanh",
)


def run(count=50, seed=0, backend=None):
    """Every check, in order: a generator of Check. ``count``: how many random architectures."""
    for name, make in LAYERS.items():
        yield from check_layer(make, name, 1e-8, seed, backend)
    yield from check_losses(seed)
    for hidden in PENALISED:
        yield check_penalty(hidden, seed, backend)
    yield from check_random_gans(count, seed, backend)
    yield from check_mixture(seed)
    for head, images in (("gaussian", False), ("gaussian", True), ("bernoulli", True)):
        yield from check_vae(head, images, seed)
    yield from check_vae_gan(seed)
    yield from check_encoder(seed)
    yield from check_masked(seed)


def print_table(checks):
    """Print one line a check as it comes, and return True if all passed."""
    print(f"{'gradient of':58}{'against':22}{'worst rel. error':>17}{'limit':>9}")
    passed = True
    for c in checks:
        print(
            f"{c.name:58}{c.method:22}{c.error:17.1e}{c.tolerance:9.0e}  {'ok' if c.passed else 'FAIL'}",
            flush=True,
        )
        passed &= c.passed
    return passed
