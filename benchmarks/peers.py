"""One training step of the same GAN, several ways: minigan, PyTorch, JAX, and its matrix products alone.

``WORKLOADS`` say what is trained, ``CONTENDERS`` who does it. Each contender is written as a good user of that
library would write it, starts from the same weights and offers the same three methods:

    run(n)        n or a few more training steps on data and noise of its own drawing; the number done
    follow(draws) training steps on given data, noise and dropout masks, so that results can be compared
    theta()       (weights of G, weights of D), flat, in minigan's layout

PyTorch and JAX are imported only by those who need them. Run as a script, this file is one of several processes of
minigan, and what it is sent, of classes in this module, makes Python import it a second time under its own name.
"""

import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigan import parallel
from minigan.data import Dataset
from minigan.gan import GAN
from minigan.layers import Dropout, LeakyReLU, Linear, Maxout, ReLU, Sigmoid, Tanh
from minigan.mlp import parse_layers

ROWS = 4096  # of the data set, which every contender holds as one array on the device
LR, MOMENTUM = 0.01, 0.5
PORT = "MINIGAN_BENCHMARK_PORT"  # where the processes of MiniganProcesses ask what to do


@dataclass(frozen=True)
class Workload:
    """A pair of networks and how they are trained: k = 1, non-saturating loss, SGD with momentum."""

    name: str
    generator: str
    discriminator: str
    latent_dim: int
    features: int
    batch_size: int
    update: str = "alternating"
    prior: str = "normal"
    r1: float = 0.0

    @property
    def images(self):
        """Whether the data are pixels in [0, 1], so that G ends in a sigmoid."""
        return math.isqrt(self.features) ** 2 == self.features

    def small(self):
        """The same structure with few units, for tests."""
        fewer = lambda text: re.sub(r"\b\d{3,}", lambda m: str(int(m[0]) // 16), text)
        features = 49 if self.images else self.features
        return replace(
            self, generator=fewer(self.generator), discriminator=fewer(self.discriminator),
            latent_dim=min(self.latent_dim, 7), features=features, batch_size=12,
        )  # fmt: skip

    def data(self):
        """(ROWS, features) float32: a ring of 8 Gaussians, or random pixels, whose content costs nobody time."""
        rng = np.random.default_rng(0)
        if self.images:
            return rng.random((ROWS, self.features), np.float32)
        angle = rng.integers(8, size=ROWS) * (math.pi / 4)
        centre = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
        return (centre + 0.02 * rng.standard_normal((ROWS, 2))).astype(np.float32)

    def gan(self, dtype="float32", ranks=None):
        """A minigan GAN, built. Its weights are where every contender starts, equal for equal workloads."""
        side = math.isqrt(self.features)
        data = Dataset(self.name, self.features, self.data(), image_shape=(side, side) if self.images else None)
        return GAN(
            generator=self.generator, discriminator=self.discriminator, latent_dim=self.latent_dim, prior=self.prior,
            steps=10**9, batch_size=self.batch_size, update=self.update, lr=LR, lr_end=1.0, momentum=MOMENTUM,
            r1=self.r1, average=0.0, backend="numpy", dtype=dtype, ranks=ranks,
        ).build(data)  # fmt: skip

    def keeps(self):
        """(columns, keep) of every dropout layer of D."""
        layers = parse_layers(self.discriminator, self.features, 1)
        return [(layer.n_in, layer.keep) for layer in layers if isinstance(layer, Dropout)]


IMAGES_512 = Workload(
    "images-512", "256, relu, 512, relu", "512, leaky_relu 0.2, 256, leaky_relu 0.2", 100, 784, batch_size=128
)
WORKLOADS = {
    w.name: w
    for w in (
        Workload("ring", "128, relu, 128, relu", "128, leaky_relu 0.2, 128, leaky_relu 0.2", 2, 2, batch_size=256),
        IMAGES_512,
        Workload(
            "images-1200", "1200, relu, 1200, relu", "1200, leaky_relu 0.2, 240, leaky_relu 0.2", 100, 784, 100
        ),
        replace(IMAGES_512, name="images-512-r1", r1=0.1),
        Workload(
            "paper", "1200, relu, 1200, relu", "dropout 0.8, maxout 240x5, dropout 0.5, maxout 240x5, dropout 0.5",
            100, 784, batch_size=100, update="simultaneous", prior="uniform",
        ),
    )
}  # fmt: skip


@dataclass
class Draw:
    """What one training step draws: ``x`` (m, features); ``z``, one (m, latent_dim) for each time that G runs;
    ``uniform``, for each time that D runs, one (rows, columns) in [0, 1) for each dropout layer."""

    x: np.ndarray
    z: list
    uniform: list
    keep: list

    def masks(self, dtype):
        """``uniform`` as dropout masks: 1/keep where it is below keep, else 0."""
        return [
            [((u < keep) * (1 / keep)).astype(dtype) for u, keep in zip(run, self.keep, strict=True)]
            for run in self.uniform
        ]


def draws(workload, steps, seed=2, dtype="float32"):
    """A Draw for each of ``steps`` training steps.

    With seed 1 one of images-512-r1's units lies within rounding of its kink, where R1's gradient jumps, and the
    comparison would take rounding for other work.
    """
    rng, X, m, keeps = np.random.default_rng(seed), workload.data(), workload.batch_size, workload.keeps()
    rows = [2 * m] if workload.update == "simultaneous" else [2 * m, m]  # of every run of D
    return [
        Draw(
            X[rng.integers(ROWS, size=m)].astype(dtype),
            [rng.standard_normal((m, workload.latent_dim)).astype(dtype) for _ in rows],
            [[rng.random((n, columns)).astype(dtype) for columns, _ in keeps] for n in rows],
            [keep for _, keep in keeps],
        )
        for _ in range(steps)
    ]


def disagreement(contender, workload, steps=3, dtype="float32"):
    """How far a fresh contender is from minigan after one step and after ``steps`` steps on the same draws.

    max over both and over G and D of ‖θ - θ_minigan‖ / ‖θ_minigan - θ_start‖: relative to what the steps changed.
    """
    reference, given = Minigan(workload, dtype), draws(workload, steps, dtype=dtype)
    start, worst = reference.theta(), 0.0
    for part in given[:1], given[1:]:
        reference.follow(part)
        contender.follow(part)
        for theta, expected, first in zip(contender.theta(), reference.theta(), start, strict=True):
            difference = np.linalg.norm(theta - expected) / np.linalg.norm(expected - first)
            worst = max(worst, float(difference)) if np.isfinite(difference) else math.inf
    return worst


def describe(layers):
    """minigan's layers as (kind, numbers ...), which is all that a peer needs to build the same network."""
    kinds = {
        Linear: lambda layer: ("linear",),
        Maxout: lambda layer: ("maxout", layer.pieces, layer.n_out),
        Dropout: lambda layer: ("dropout",),
        LeakyReLU: lambda layer: ("leaky_relu", layer.slope),
        ReLU: lambda layer: ("relu",),
        Tanh: lambda layer: ("tanh",),
        Sigmoid: lambda layer: ("sigmoid",),
    }
    return [kinds[type(layer)](layer) for layer in layers]


# ------------------------------------------------------------------------------------------------ minigan


class Minigan:
    """The library itself, through its public ``train_step``."""

    label = "minigan"

    def __init__(self, workload, dtype="float32", ranks=None):
        self.gan = workload.gan(dtype, ranks)

    def run(self, n):
        for _ in range(n):
            self.gan.train_step()
        return n

    def follow(self, draws):
        gan, own = self.gan, (self.gan.batches, self.gan.rng.dropout)
        mine = slice(gan.team.part * gan.m, (gan.team.part + 1) * gan.m)  # all rows, unless there are more processes
        for draw in draws:
            z, uniform = iter(draw.z), iter([u for run in draw.uniform for u in run])

            def next_batch(out, x=draw.x):
                out[...] = x[mine]

            def draw_z(z=z):
                gan.tape_G.x[...] = next(z)[mine]
                return gan.tape_G.x

            def random(dtype, out, uniform=uniform):
                out[...] = next(uniform)

            gan.batches, gan.rng.dropout = SimpleNamespace(next=next_batch), SimpleNamespace(random=random)
            gan.draw_z = draw_z
            gan.train_step()
        gan.batches, gan.rng.dropout = own
        del gan.draw_z

    def theta(self):
        return self.gan.G.theta.copy(), self.gan.D.theta.copy()


class MiniganProcesses:
    """The same by as many processes as there are cores, of one thread each, as ``mpiexec -n CORES`` starts them.

    This process only passes on what is asked for. The others wait for it at a socket: in MPI they would not sleep.
    """

    label = "minigan, mpiexec"

    def __init__(self, workload, dtype="float32", processes=None):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        processes = processes or max(n for n in range(1, cores + 1) if workload.batch_size % n == 0)
        beside = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
        with socket.create_server(("localhost", 0)) as server:
            server.settimeout(60)  # in case one of them fails before it can ask
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", PORT: str(server.getsockname()[1])}
            mpiexec = shutil.which("mpiexec", path=beside) or "mpiexec"
            self.job = subprocess.Popen([mpiexec, "-n", str(processes), sys.executable, __file__], env=environment)
            self.processes = [Connection(server.accept()[0].detach()) for _ in range(processes)]
        self.ask("__init__", workload, dtype)

    def ask(self, method, *arguments):
        """What each process returns."""
        for process in self.processes:
            process.send((method, arguments))
        try:
            return [process.recv() for process in self.processes]
        except EOFError:
            raise RuntimeError(f"mpiexec ended with exit code {self.job.wait()}") from None

    def run(self, n):
        return self.ask("run", n)[0]

    def follow(self, draws):
        self.ask("follow", draws)

    def theta(self):
        return self.ask("theta")[0]

    def process_time(self):
        """Seconds that all of them have used."""
        return time.process_time() + sum(self.ask("process_time"))

    def close(self):
        for process in self.processes:
            process.close()
        self.job.wait()


class OneOfSeveral(Minigan):
    """A process of MiniganProcesses, until that closes the connection."""

    process_time = staticmethod(time.process_time)

    def __init__(self, workload, dtype):
        super().__init__(workload, dtype, parallel.connect())

    @classmethod
    def serve(cls):
        it = cls.__new__(cls)
        with Connection(socket.create_connection(("localhost", int(os.environ[PORT]))).detach()) as connection:
            while True:
                try:
                    method, arguments = connection.recv()
                except EOFError:
                    return 0
                connection.send(getattr(it, method)(*arguments))


class Products:
    """The matrix products of one step of minigan and nothing else: same arrays, same order, written in place.

    They are recorded, not listed by hand. Column sums, which minigan writes as a product with ones, are left out.
    """

    label = "products alone"

    def __init__(self, workload, dtype="float32"):
        gan, self.products = workload.gan(dtype), []
        gan.train_step()  # so that the recorded arrays hold ordinary numbers, also those written before they are read
        for layer in (layer for net in (gan.G, gan.D) for layer in net.layers if layer.shapes):
            getattr(layer, "affine", layer).matmul = self.matmul
        gan.train_step()

    def matmul(self, a, b, out):
        if a.ndim == 2:
            self.products.append((a, b, out))
        return np.matmul(a, b, out=out)

    def run(self, n):
        for _ in range(n):
            for a, b, out in self.products:
                np.matmul(a, b, out=out)
        return n

    def flops(self):
        """Floating-point operations of these products."""
        return sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in self.products)


# ------------------------------------------------------------------------------------------------ PyTorch


class TorchEager:
    """nn.Module, autograd and torch.optim.SGD, op by op.

    The faster of these, measured: real and fake rows in one pass, except where a gradient belongs to one half only
    (R1, simultaneous update); ``amax`` for maxout; ``rand < keep`` for dropout; the fused SGD.
    """

    label = "PyTorch eager"

    def __init__(self, workload, dtype="float32"):
        import torch

        gan = workload.gan(dtype)
        self.torch, self.workload, self.dtype = torch, workload, getattr(torch, dtype)
        self.X = torch.from_numpy(workload.data()).to(self.dtype)
        self.G, self.D = (torch_network(net) for net in (gan.G, gan.D))
        self.keeps = workload.keeps()
        self.prepare()

    def prepare(self):
        sgd = lambda net: self.torch.optim.SGD(net.parameters(), LR, MOMENTUM, fused=True)
        self.optimizer_G, self.optimizer_D = sgd(self.G), sgd(self.D)

    def update(self, x_real, z, masks):
        """One training step. z and masks: one for each run of G and D."""
        if self.workload.update == "simultaneous":
            self.simultaneous_update(x_real, z[0], masks[0])
        else:
            self.discriminator_step(x_real, z[0], masks[0])
            self.generator_step(z[1], masks[1])

    def discriminator_step(self, x_real, z, masks):
        with self.torch.no_grad():
            x_fake = self.G(z)
        self.optimizer_D.zero_grad()
        if self.workload.r1:
            x_real.requires_grad_(True)
            logits_real, logits_fake = self.apart(self.D, x_real, x_fake, masks)
            (v,) = self.torch.autograd.grad(logits_real.sum(), x_real, create_graph=True)
            penalty = self.workload.r1 / 2 * v.square().sum(1).mean()
            (self.loss_D(logits_real, logits_fake) + penalty).backward(inputs=list(self.D.parameters()))
        else:
            self.loss_D(*self.together(self.D, x_real, x_fake, masks)).backward()
        self.optimizer_D.step()

    def generator_step(self, z, masks):
        self.D.requires_grad_(False)
        self.optimizer_G.zero_grad()
        self.loss_G(self.D(self.G(z), masks)).backward()
        self.optimizer_G.step()
        self.D.requires_grad_(True)

    def simultaneous_update(self, x_real, z, masks):
        self.optimizer_D.zero_grad()
        self.optimizer_G.zero_grad()
        logits_real, logits_fake = self.apart(self.D, x_real, self.G(z), masks)
        self.loss_G(logits_fake).backward(inputs=list(self.G.parameters()), retain_graph=True)
        self.loss_D(logits_real, logits_fake).backward(inputs=list(self.D.parameters()))
        self.optimizer_D.step()
        self.optimizer_G.step()

    def together(self, D, x_real, x_fake, masks):
        logits = D(self.torch.cat([x_real, x_fake]), masks)
        return logits[: len(x_real)], logits[len(x_real) :]

    def apart(self, D, x_real, x_fake, masks):
        m = len(x_real)
        return D(x_real, [a[:m] for a in masks]), D(x_fake, [a[m:] for a in masks])

    def loss_D(self, logits_real, logits_fake):
        softplus = self.torch.nn.functional.softplus
        return softplus(-logits_real).mean() + softplus(logits_fake).mean()

    def loss_G(self, logits_fake):
        return self.torch.nn.functional.softplus(-logits_fake).mean()

    def draw(self):
        torch, w = self.torch, self.workload
        m, simultaneous = w.batch_size, w.update == "simultaneous"
        x = self.X.index_select(0, torch.randint(ROWS, (m,)))
        z, masks = [], []
        for rows in [2 * m] if simultaneous else [2 * m, m]:
            if w.prior == "uniform":
                z.append(torch.rand(m, w.latent_dim, dtype=self.dtype).sub_(0.5).mul_(12**0.5))
            else:
                z.append(torch.randn(m, w.latent_dim, dtype=self.dtype))
            masks.append([(torch.rand(rows, n) < keep).to(self.dtype).mul_(1 / keep) for n, keep in self.keeps])
        return x, z, masks

    def run(self, n):
        for _ in range(n):
            self.update(*self.draw())
        return n

    def follow(self, draws):
        tensors = lambda arrays: [self.torch.from_numpy(a) for a in arrays]
        for draw in draws:
            masks = [tensors(run) for run in draw.masks(draw.x.dtype)]
            self.update(self.torch.from_numpy(draw.x), tensors(draw.z), masks)

    def theta(self):
        flat = lambda net: np.concatenate([p.detach().numpy().T.ravel() for p in net.parameters()])
        return flat(self.G), flat(self.D)


class TorchCompile(TorchEager):
    """The whole step, gradients and SGD included, as one graph: torch.func.grad inside torch.compile(fullgraph=True).

    Mode "default". Only the draws stay outside, where they are faster. Compiling the loss functions alone and calling
    backward() on them measured slower than this, and no faster than eager.
    """

    label = "torch.compile"
    backend = "inductor"

    def prepare(self):
        self.state = []
        for net in (self.G, self.D):
            parameters = {name: p.detach() for name, p in net.named_parameters()}
            self.state += [parameters, {name: self.torch.zeros_like(p) for name, p in parameters.items()}]
        self.torch._dynamo.reset()
        self.compiled = self.torch.compile(self.functional_update, fullgraph=True, backend=self.backend)

    def update(self, x_real, z, masks):
        self.compiled(*self.state, x_real, z, masks)

    def functional_update(self, theta_G, velocity_G, theta_D, velocity_D, x_real, z, masks):
        grad, call = self.torch.func.grad, self.torch.func.functional_call
        run_G = lambda theta, z: call(self.G, theta, (z,))
        run_D = lambda theta, x, masks: call(self.D, theta, (x, masks))
        loss_G = lambda theta, z, masks: self.loss_G(run_D(theta_D, run_G(theta, z), masks))

        x_fake = run_G(theta_G, z[0])
        split = self.apart if self.workload.r1 or self.workload.update == "simultaneous" else self.together

        def loss_D(theta):
            D = lambda x, masks: run_D(theta, x, masks)
            loss = self.loss_D(*split(D, x_real, x_fake, masks[0]))
            if self.workload.r1:
                v = grad(lambda x: D(x, [a[: len(x)] for a in masks[0]]).sum())(x_real)
                loss = loss + self.workload.r1 / 2 * v.square().sum(1).mean()
            return loss

        if self.workload.update == "simultaneous":
            grad_G = grad(loss_G)(theta_G, z[0], [a[len(x_real) :] for a in masks[0]])
            self.descend(theta_D, velocity_D, grad(loss_D)(theta_D))
        else:
            self.descend(theta_D, velocity_D, grad(loss_D)(theta_D))
            grad_G = grad(loss_G)(theta_G, z[1], masks[1])
        self.descend(theta_G, velocity_G, grad_G)

    @staticmethod
    def descend(theta, velocity, grad):
        for name, v in velocity.items():
            v.mul_(MOMENTUM).sub_(grad[name], alpha=LR)
            theta[name].add_(v)


def torch_network(net):
    """minigan's network ``net`` as an nn.Module, with its weights. Its forward takes (x, dropout masks)."""
    import torch
    from torch import nn

    class Maxout(nn.Module):
        def __init__(self, pieces, units):
            super().__init__()
            self.shape = pieces, units

        def forward(self, a):
            return a.view(len(a), *self.shape).amax(1)

    class Dropout(nn.Module):
        def forward(self, x, mask):
            return x * mask

    class Network(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x, masks=()):
            masks = iter(masks)
            for layer in self.layers:
                x = layer(x, next(masks)) if isinstance(layer, Dropout) else layer(x)
            return x

    def linear(W, b):
        layer = nn.Linear(*W.shape, dtype=torch.from_numpy(W).dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(W.T.copy()))
            layer.bias.copy_(torch.from_numpy(b.copy()))
        return layer

    layers = []
    for (kind, *numbers), p in zip(describe(net.layers), net.params.layers, strict=True):
        match kind:
            case "linear":
                layers.append(linear(*p))
            case "maxout":
                layers += [linear(*p), Maxout(*numbers)]
            case "dropout":
                layers.append(Dropout())
            case "leaky_relu":
                layers.append(nn.LeakyReLU(*numbers))
            case _:
                layers.append({"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[kind]())
    return Network(layers)


# ---------------------------------------------------------------------------------------------------- JAX


class Jax:
    """Pure functions, jax.grad, and jit of the whole step, draws included; the state's memory is donated.

    One compiled step per call: each call starts while the one before it runs.
    """

    label = "JAX jit"

    def __init__(self, workload, dtype="float32"):
        import jax

        self.jax, self.workload, self.dtype = jax, workload, dtype
        gan = workload.gan(dtype)
        self.G, self.D = (jax_network(describe(net.layers)) for net in (gan.G, gan.D))
        self.keeps = workload.keeps()
        self.X = jax.numpy.asarray(workload.data().astype(dtype))
        theta = [[tuple(map(self.own, p)) for p in net.params.layers] for net in (gan.G, gan.D)]
        velocity = jax.tree.map(jax.numpy.zeros_like, theta)
        self.state = *theta, *velocity
        self.key = jax.random.key(0)
        self.prepare()

    def own(self, array):
        return self.jax.numpy.array(array, copy=True)  # the state is donated, and must not share minigan's memory

    def prepare(self):
        self.compiled = self.jax.jit(self.step, donate_argnums=(0, 1))

    def step(self, state, key, X):
        key, now = self.jax.random.split(key)
        return self.update(state, *self.draw(now, X)), key

    def update(self, state, x_real, z, masks):
        """One training step, a pure function. z and masks: one for each run of G and D."""
        jnp, grad, w = self.jax.numpy, self.jax.grad, self.workload
        softplus, m = self.jax.nn.softplus, w.batch_size
        theta_G, theta_D, velocity_G, velocity_D = state
        real, fake = [a[:m] for a in masks[0]], [a[m:] for a in masks[0]]
        x_fake = self.G(theta_G, z[0])

        def loss_D(theta):
            if w.r1 or w.update == "simultaneous":
                logits_real, logits_fake = self.D(theta, x_real, real), self.D(theta, x_fake, fake)
            else:
                logits = self.D(theta, jnp.concatenate([x_real, x_fake]), masks[0])
                logits_real, logits_fake = logits[:m], logits[m:]
            loss = softplus(-logits_real).mean() + softplus(logits_fake).mean()
            if w.r1:
                v = grad(lambda x: self.D(theta, x, real).sum())(x_real)
                loss += w.r1 / 2 * jnp.square(v).sum(1).mean()
            return loss

        def loss_G(theta, theta_D, z, masks):
            return softplus(-self.D(theta_D, self.G(theta, z), masks)).mean()

        grad_D = grad(loss_D)(theta_D)
        if w.update == "simultaneous":
            grad_G = grad(loss_G)(theta_G, theta_D, z[0], fake)
            theta_D, velocity_D = self.descend(theta_D, velocity_D, grad_D)
        else:
            theta_D, velocity_D = self.descend(theta_D, velocity_D, grad_D)
            grad_G = grad(loss_G)(theta_G, theta_D, z[1], masks[1])
        theta_G, velocity_G = self.descend(theta_G, velocity_G, grad_G)
        return theta_G, theta_D, velocity_G, velocity_D

    def descend(self, theta, velocity, grad):
        velocity = self.jax.tree.map(lambda v, g: MOMENTUM * v - LR * g, velocity, grad)
        return self.jax.tree.map(lambda a, v: a + v, theta, velocity), velocity

    def draw(self, key, X):
        random, w = self.jax.random, self.workload
        m, simultaneous = w.batch_size, w.update == "simultaneous"
        key, now = random.split(key)
        x = X[random.randint(now, (m,), 0, ROWS)]
        z, masks = [], []
        for rows in [2 * m] if simultaneous else [2 * m, m]:
            key, now, *nows = random.split(key, 2 + len(self.keeps))
            if w.prior == "uniform":
                z.append(random.uniform(now, (m, w.latent_dim), self.dtype, -(3**0.5), 3**0.5))
            else:
                z.append(random.normal(now, (m, w.latent_dim), self.dtype))
            masks.append(
                [
                    self.jax.numpy.where(random.bernoulli(now, keep, (rows, n)), 1 / keep, 0).astype(self.dtype)
                    for now, (n, keep) in zip(nows, self.keeps, strict=True)
                ]
            )
        return x, z, masks

    def run(self, n):
        for _ in range(n):
            self.state, self.key = self.compiled(self.state, self.key, self.X)
        self.jax.block_until_ready(self.state)
        return n

    def follow(self, draws):
        update = self.jax.jit(self.update)
        for draw in draws:
            self.state = update(self.state, draw.x, draw.z, draw.masks(draw.x.dtype))

    def theta(self):
        flat = lambda theta: np.concatenate([np.ravel(a) for a in self.jax.tree.leaves(theta)])
        return flat(self.state[0]), flat(self.state[1])


class JaxScan(Jax):
    """The same step inside lax.scan: a stretch of training is one compiled program."""

    label = "JAX lax.scan"

    def prepare(self):
        self.length = min(max(4, int(2e10 / Products(self.workload).flops())), 200)  # 0.05 to 0.2 s

        def loop(state, key, X):
            step = lambda carry, _: (self.step(*carry, X), None)
            return self.jax.lax.scan(step, (state, key), length=self.length)[0]

        self.compiled = self.jax.jit(loop, donate_argnums=(0, 1))

    def run(self, n):
        return self.length * super().run(math.ceil(n / self.length))

    def follow(self, draws):
        stacked = self.jax.tree.map(
            lambda *a: np.stack(a), *[(draw.x, draw.z, draw.masks(draw.x.dtype)) for draw in draws]
        )
        scan = self.jax.jit(lambda s, d: self.jax.lax.scan(lambda s, d: (self.update(s, *d), None), s, d)[0])
        self.state = scan(self.state, stacked)


def jax_network(layers):
    """A function (theta, x, dropout masks) -> out for layers as ``describe`` gives them."""
    import jax

    activations = {"relu": jax.nn.relu, "tanh": jax.numpy.tanh, "sigmoid": jax.nn.sigmoid}

    def network(theta, x, masks=()):
        masks = iter(masks)
        for (kind, *numbers), p in zip(layers, theta, strict=True):
            match kind:
                case "linear":
                    x = x @ p[0] + p[1]
                case "maxout":
                    x = (x @ p[0] + p[1]).reshape(len(x), *numbers).max(1)
                case "dropout":
                    x = x * next(masks)
                case "leaky_relu":
                    x = jax.nn.leaky_relu(x, *numbers)
                case _:
                    x = activations[kind](x)
        return x

    return network


CONTENDERS = {
    "products": Products,
    "minigan": Minigan,
    "minigan-mpiexec": MiniganProcesses,
    "torch": TorchEager,
    "torch-compile": TorchCompile,
    "jax": Jax,
    "jax-scan": JaxScan,
}
# What must be installed, and what pip is to be told for it.
NEEDS = {"minigan-mpiexec": "mpi4py", "torch": "torch", "torch-compile": "torch", "jax": "jax", "jax-scan": "jax"}
INSTALL = {"mpi4py": "mpi4py mpich", "torch": "torch==2.13.0", "jax": "jax==0.10.2"}

if __name__ == "__main__":
    sys.exit(parallel.guarded(OneOfSeveral.serve))
