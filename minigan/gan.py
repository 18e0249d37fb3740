"""Generative adversarial nets: Algorithm 1 of Goodfellow et al. 2014 (arXiv 1406.2661), by hand.

for number of training iterations do                                         GAN.fit, each by GAN.train_step
    for k steps do                                                           GAN.update_networks
        sample minibatch of m noise samples z from the prior
        sample minibatch of m examples x from the data
        update D by ascending its stochastic gradient of V                   GAN.discriminator_step
    sample minibatch of m noise samples z from the prior                     GAN.generator_step
    update G by descending its stochastic gradient
"""

import operator
from numbers import Integral
from types import SimpleNamespace

import numpy as np

from minigan import clusters, losses
from minigan.backend import Backend, empty_batch
from minigan.batches import Batches
from minigan.data import Dataset, from_array
from minigan.errors import Diverged, MiniganError
from minigan.graph import Replay
from minigan.mlp import parse_layers
from minigan.optim import OPTIMIZERS, linear
from minigan.options import Options
from minigan.parallel import Alone

# One random generator for each purpose: first weights, order of the rows, rows of endless data, z, dropout, samples.
STREAMS = ("weights", "order", "stream", "noise", "dropout", "evaluation")
AVERAGE_EVERY = 10  # steps between updates of the averaged weights: a tenth of the cost, nearly the same average


class GAN(Options):
    """A generator G(z) and a discriminator D(x), two multilayer perceptrons trained against each other.

        gan = GAN(steps=5000)
        gan.fit(X)                  # X (n, features), or (n, height, width) images
        x = gan.sample(64)          # (64, features), in X's units

    The options, all of them keywords, are those of ``options.Options``. Raises MiniganError, one sentence, for one
    that makes no sense, and Diverged if training does.
    """

    def __init__(self, *, ranks=None, **options):
        super().__init__(**options)
        self.check()
        self.ranks = ranks or Alone()  # several processes: see parallel.py
        self.backend_used = Backend(self.backend, self.ranks.local_rank)
        self.ranks.use(self.backend_used)
        self.xp = self.backend_used.xp
        self.step, self.stepped, self.history = 0, False, []
        self.data = self.G = self.D = None
        self._do = lambda step: self._need_networks()  # until they are built

    # -- Algorithm 1 -----------------------------------------------------------------------------------

    def train_step(self):
        """One iteration of Algorithm 1. It never waits for the device, and its passes allocate no memory."""
        with np.errstate(over="ignore", invalid="ignore"):  # if training diverges, report() says so
            self._do(self.update_networks)
            self.step, self.stepped = self.step + 1, True
            self._average_weights()
            self._record_logits()

    def update_networks(self):
        """k steps of D, then one of G; or, with update "simultaneous", both at once."""
        if self.update == "simultaneous":
            self.simultaneous_step()
        else:
            for _ in range(self.k):
                self.discriminator_step()
            self.generator_step()

    def discriminator_step(self, x_real=None):
        """Update D by ascending V̂ = 1/m Σ [log D(x) + log(1 - D(G(z)))] in θ_D, less the penalties; G is not touched.

        x_real (m, features) in the network's units, one-hot labels or clusters behind it if there are any; None
        takes the next minibatch of the data.
        """
        self.discriminator_gradient(x_real)
        self._descend_D()

    def generator_step(self):
        """Update G by descending its loss in θ_G, with fresh z; D is not touched."""
        self.generator_gradient()
        self._descend_G()

    def simultaneous_step(self, x_real=None):
        """Update both from gradients at the same θ, on one fake batch, as the paper's own code does."""
        self.simultaneous_gradients(x_real)
        self._descend_D()
        self._descend_G()

    def simultaneous_gradients(self, x_real=None):
        """Both gradients, into ``grad_D`` and ``grad_G``."""
        self._forward_real_and_fake(x_real)
        self._backward_G(self.tape_D_fake)
        self._backward_D()

    def discriminator_gradient(self, x_real=None):
        """d(-V̂ + penalties)/dθ_D into ``grad_D``, real and fake rows in one batch.

        With update "alternating" a penalty works in the memory of ``grad_G``, whose content is lost.
        """
        self._forward_real_and_fake(x_real)
        self._backward_D()

    def generator_gradient(self):
        """dL_G/dθ_G, through D, into ``grad_G``. D has moved since its own step, so it sees G(z) anew."""
        x_fake = self._generate()
        x = self._beside_labels(x_fake, self.tape_DG.x)
        self.D.forward(x, self.tape_DG, self.team.share(self.rng.dropout))
        self._backward_G(self.tape_DG)

    def _forward_real_and_fake(self, x_real):
        m, x = self.m, self.tape_D.x  # the tape's own input: written in place
        if x_real is None:
            self.batches.next(out=x[:m])
        else:
            x[:m] = x_real
        self._beside_labels(self._generate(), x[m:])
        self.D.forward(x, self.tape_D, self.team.share(self.rng.dropout, parts=2))

    def _generate(self):
        """G(z) (m, features) for m fresh samples z of the prior; G(z|c) with the labels c of the last real rows."""
        z = self.draw_z()
        if self.classes is not None:
            z = self._beside_labels(z, self.tape_G.x)
        return self.G.forward(z, self.tape_G, self.team.share(self.rng.dropout))

    def draw_z(self):
        """m fresh samples (m, latent_dim) of the prior, in an array of the GAN's own."""
        return draw_prior(self.team.share(self.rng.noise), self.z, self.prior, self.xp)

    def _beside_labels(self, x, out):
        """Fill ``out`` with x and, beside it, the labels of the last real rows; unconditional GANs have none."""
        out[:, : x.shape[1]] = x
        out[:, x.shape[1] :] = self.labels
        return out

    def _backward_D(self):
        dlogits = self.loss_D.gradient(self.tape_D.out, out=self.dlogits_D)
        self.D.backward(dlogits, self.tape_D, self.grad_D, need_dx=False)
        if self.has_r1:
            self.penalty.add_gradient(self.tape_D_real, self.penalty_weight(), self.grad_D)
        if self.r2:
            self.penalty.add_gradient(self.tape_D_fake, self.r2, self.grad_D)

    def _backward_G(self, tape):
        dlogits = losses.generator_gradient(tape.out, self.dlogits_G, self.loss, self.xp)
        dx_fake = self.D.backward(dlogits, tape)
        if self.dx_fake is not None:  # without the labels' columns; in one piece, or CuPy would copy it in each product
            self.dx_fake[...] = dx_fake[:, : self.data.features]
            dx_fake = self.dx_fake
        self.G.backward(dx_fake, self.tape_G, self.grad_G, need_dx=False)

    def _descend_D(self):
        """θ_D ← optimiser(θ_D, gradient of -V̂ and the penalties): descending -V̂ is ascending V̂."""
        self.team.descend(self.optimizer_D, self.D.params, self.grad_D, self.numbers_D())

    def _descend_G(self):
        """θ_G ← optimiser(θ_G, gradient of L_G)."""
        self.team.descend(self.optimizer_G, self.G.params, self.grad_G, self.numbers_G())

    def numbers_D(self):
        """What D's optimiser is to use for this step: its learning rate, the momentum, and what follows from them.

        To be asked for once: Adam counts its steps by it.
        """
        lr = self.learning_rate(self.lr if self.lr_D is None else self.lr_D)
        return self.optimizer_D.numbers(lr, self._momentum())

    def numbers_G(self):
        """The same for G's."""
        return self.optimizer_G.numbers(self.learning_rate(self.lr), self._momentum())

    def learning_rate(self, lr):
        """lr at this step of its schedule."""
        return linear(lr, lr * self.lr_end, self.step, self.steps) * self.lr_decay**-self.step

    def _momentum(self):
        end = self.momentum if self.momentum_end is None else self.momentum_end
        return linear(self.momentum, end, self.step, self.momentum_steps or self.steps)

    @property
    def has_r1(self):
        """Whether the penalty on real rows counts at some step: it may begin, or end, at 0."""
        return bool(self.r1 or self.r1_end)

    def penalty_weight(self):
        """The weight of the penalty on real rows at this step of its schedule."""
        end = self.r1 if self.r1_end is None else self.r1_end
        return linear(self.r1, end, self.step, self.steps)

    def _average_weights(self):
        """θ_average ← d θ_average + (1 - d) θ_G every few steps, d the decay of that many.

        The decay is small at first, so that the start is forgotten soon; the default, 0.999, is reached at step 9,000.
        """
        if self.average and self.step % AVERAGE_EVERY == 0:
            d = min(self.average, self.step / (self.step + 9)) ** AVERAGE_EVERY
            share = self.xp.multiply(self.G.theta, 1 - d, out=self.grad_G.flat)  # the gradient is used up by now
            self.averaged.flat *= d
            self.averaged.flat += share

    # -- What a person sees ----------------------------------------------------------------------------

    def fit(self, X, on_report=None):
        """Train on X from the beginning and return self.

        X: a Dataset, or an array as ``data.from_array`` takes it. ``on_report(gan)`` is called after each report,
        which is also appended to ``history``.
        """
        self.build(X)
        while self.step < self.steps:
            self.train_step()
            if self.step % self.report_every == 0 or self.step == self.steps:
                self.history.append(self.report())
                if on_report is not None:
                    on_report(self)
        return self

    def sample(self, n, seed=None, average=True, labels=None, truncation=None):
        """n samples (n, features), float32, in the data's own units (pixels in [0, 1]), on the host.

        ``seed`` fixes z, equal on every backend; None draws on, without touching the training's random numbers.
        average=False uses the last weights and not their average. ``labels``, of a conditional GAN, or clusters: one
        for all, or (n,); None draws them as often as the data have them. z is multiplied by ``truncation``, None: the
        option's: below 1 the samples are more typical and less varied (Brock et al. 2019, arXiv 1809.11096, section
        3.1, who draw the large ones anew; by a factor Karras et al. 2019, arXiv 1812.04948, appendix B).
        """
        self._need_networks()
        truncation = self.truncation if truncation is None else truncation
        if not 0 < truncation <= 1:
            raise MiniganError(f"truncation is {truncation!r}; it must be a number above 0, 1 at most")
        if not isinstance(n, Integral) or n < 0:
            raise MiniganError(f"n is {n!r}; it must be a whole number, 0 or more")
        try:
            rng = self.rng.evaluation if seed is None else np.random.default_rng(seed)
        except (TypeError, ValueError):
            raise MiniganError(f"seed is {seed!r}; it must be a whole number, 0 or more, or None") from None
        z = draw_prior(rng, np.empty((n, self.latent_dim), self.dtype), self.prior)
        z *= truncation
        if self.classes is not None and labels is None:
            labels = self.draw_labels(n, rng)
        return self.decode(z, average, labels)

    def draw_labels(self, n, rng):
        """n labels (n,) of the data's classes, as often as the data have them; rng: a host generator."""
        return rng.choice(list(self.classes.label_shares), n, p=list(self.classes.label_shares.values()))

    def labels_to_look_at(self, n):
        """n labels (n,) class by class, for a picture: of images all classes about equally often, of others as often
        as the data have them, because they are drawn upon the data."""
        classes, shares = (np.array(list(part)) for part in zip(*self.classes.label_shares.items(), strict=True))
        upto = np.cumsum(np.ones(len(shares)) if self.data.image_shape else shares)
        return classes[np.searchsorted(upto / upto[-1], (np.arange(n) + 0.5) / n)]

    def decode(self, z, average=True, labels=None):
        """G(z) (n, features), float32, in the data's own units, for z (n, latent_dim) on the host; G(z|labels)."""
        self._need_networks()
        params = self.averaged if average and self.has_average else None
        x = self._in_blocks(self.G, self._with_labels(self._rows(z, self.G), labels), params)
        return self.data.denormalise(x).astype(np.float32, copy=False)

    def probability(self, x, labels=None):
        """D(x) (n,), the probability that a row of x (n, features), in the data's own units, is real.

        Of a conditional GAN D(x|labels); without labels the mean over the classes, each by its share of the data.
        With clusters D(x|cluster), each row in its own.
        """
        self._need_networks()
        if self.conditional and labels is None:
            return sum(share * self.probability(x, label) for label, share in self.data.label_shares.items())
        x = self.data.normalise(self._rows(x, self.D))
        if self.clusters and labels is None:
            labels = clusters.nearest(x, self.centres, self.cluster_of)
        logits = self._in_blocks(self.D, self._with_labels(x, labels))
        return losses.sigmoid(logits[:, 0])

    @property
    def has_average(self):
        """Whether there is an average of G's weights yet."""
        return self.average > 0 and self.step >= AVERAGE_EVERY

    def _rows(self, x, net):
        """x as an array, if it is (n, columns) as ``net`` takes them beside the labels; MiniganError if it is not."""
        x, columns = np.asarray(x), net.n_in - (0 if self.classes is None else len(self.classes.label_shares))
        if x.ndim != 2 or x.shape[1] != columns:
            raise MiniganError(f"an array of shape {x.shape} was given; give (n, {columns}), a row for each sample")
        return x

    def _with_labels(self, x, labels):
        """x (n, columns) with the one-hot labels behind it; x itself if the GAN has none."""
        if self.classes is None:
            if labels is not None:
                raise MiniganError("this GAN knows no labels; leave them out, or train one with conditional=True")
            return x
        if labels is None:
            raise MiniganError("this GAN needs labels, or clusters; give one for all rows or one for each")
        if np.shape(labels) not in ((), (1,), (len(x),)):
            raise MiniganError(
                f"labels of shape {np.shape(labels)} do not fit {len(x)} rows; give one for all, or one for each"
            )
        return np.concatenate([x, self.classes.one_hot(np.broadcast_to(labels, len(x)))], axis=1)

    def _in_blocks(self, net, x, params=None, block=1024):
        """The output of net for host rows x of any number, without dropout, on the host."""
        out = np.empty((len(x), net.n_out), self.dtype)
        tape = net.tape(min(block, len(x)))
        for i in range(0, len(x), block):
            rows = self.backend_used.to_device(x[i : i + block].astype(self.dtype, copy=False))
            out[i : i + block] = self.backend_used.to_host(net.forward(rows, tape[: len(rows)], None, params))
        return out

    def _need_networks(self):
        if self.G is None:
            raise MiniganError("this GAN has no networks yet; call fit(X), or build(X) to make untrained ones")

    def report(self):
        """The numbers of the steps since the last report: the one moment when training waits for the device.

        V is V̂, loss_D = -V̂, loss_G the loss that G descends, D_real and D_fake the means of D(x) and D(G(z)), all
        without the penalties; spread and spread_real are the standard deviations of a fake and a real batch in the
        network's units, and the first is far below the second when G has collapsed.
        Raises Diverged if a loss or a weight is no longer finite.
        """
        if not self.stepped:
            raise MiniganError("there is nothing to report before the first step; call train_step() or fit(X)")
        xp, n = self.xp, (self.step - 1) % self.report_every + 1
        real, fake = self.record_D[:n, : self.m], self.record_D[:n, self.m :]
        x_real, x_fake = self.tape_D.x[: self.m, : self.data.features], self.tape_D.x[self.m :, : self.data.features]
        with np.errstate(over="ignore", invalid="ignore"):  # of a run that has diverged
            means = xp.stack([x_fake.mean(0), x_real.mean(0)])
            self.team.average(means)  # else each part of a batch would be measured against its own
            V = losses.value(real, fake, xp)
            numbers = {
                "V": V,
                "loss_D": -V,
                "loss_G": losses.generator_loss(self.record_G[:n], self.loss, xp),
                "D_real": losses.sigmoid(real, xp).mean(),
                "D_fake": losses.sigmoid(fake, xp).mean(),
                "spread": xp.square(x_fake - means[0]).mean(0).mean(),
                "spread_real": xp.square(x_real - means[1]).mean(0).mean(),
                "weights": self.G.theta.sum() + self.D.theta.sum(),
            }
        values = self.backend_used.to_host(xp.stack(list(numbers.values())))
        self.team.average(values)
        numbers = dict(zip(numbers, values.tolist(), strict=True))
        numbers["spread"], numbers["spread_real"] = numbers["spread"] ** 0.5, numbers["spread_real"] ** 0.5
        numbers = {"step": self.step, **numbers, "lr": self.learning_rate(self.lr)}
        if not np.isfinite([numbers["V"], numbers["loss_G"], numbers.pop("weights")]).all():
            raise Diverged(
                f"training diverged before step {self.step}: the loss or a weight is not a finite number, most likely "
                f"because a learning rate or a penalty is too high; {self._remedy()}"
            )
        return numbers

    def _remedy(self):
        """The end of the sentence about divergence: the rates and penalties there are, and what to try instead."""
        there, instead = [], []
        for name in ("lr", "lr_D", "r1", "r1_end", "r2"):
            v, is_rate = getattr(self, name), name.startswith("lr")
            if v:
                there.append(f"{name} {v:g}")
            if v and (is_rate or v > 1):
                instead.append(f"--{name.replace('_', '-')} {min(v / 3 if is_rate else v, 0.1):.2g}")
        return f"with {', '.join(there)}, try {' '.join(instead)}"

    def _record_logits(self):
        i = (self.step - 1) % self.report_every
        tape_fake = self.tape_D_fake if self.update == "simultaneous" else self.tape_DG  # D's tape of G's last step
        self.record_D[i] = self.tape_D.out[:, 0]
        self.record_G[i] = tape_fake.out[:, 0]

    # -- Construction and state ------------------------------------------------------------------------

    def build(self, X, start=True, found=None, shares=None):
        """Make the networks, optimisers, tapes and random generators for X (as in ``fit``), and return self.

        start=False leaves out what only a fresh start needs, for ``checkpoint`` to fill in; ``found`` and ``shares``
        are the clusters of the run, as ``clusters.find`` and ``clusters.in_clusters`` have them.
        """
        self.data = data = X if isinstance(X, Dataset) else from_array(X)
        if data.X is not None and self.batch_size > len(data.X):
            raise MiniganError(
                f"batch size {self.batch_size} is larger than the data ({len(data.X)} rows); "
                f"use --batch-size {len(data.X)} or less"
            )
        backend, xp = self.backend_used, self.xp
        seeds = dict(zip(STREAMS, np.random.SeedSequence(self.seed).spawn(len(STREAMS)), strict=True))
        host = {name: np.random.Generator(np.random.SFC64(seeds[name])) for name in ("weights", "order", "evaluation")}
        device = {name: backend.generator(seeds[name]) for name in ("stream", "noise", "dropout")}
        self.rng = SimpleNamespace(**host, **device)

        if self.conditional and not data.label_shares:
            raise MiniganError(
                f"a conditional GAN needs labels and '{data.name}' has none that it can use; give a .csv file with "
                "--label-column, a .npz file with an array 'labels' of whole numbers or texts, one for each row, a "
                "folder with every image in a subfolder, or from_array(X, labels), or leave --conditional out"
            )
        if self.conditional and data.X is not None and len(data.label_shares) > max(20, len(data.X) // 2):
            raise MiniganError(
                f"'{data.name}' has {len(data.label_shares)} different labels in {len(data.X)} rows, too many to learn "
                "each of them; choose a column of classes, or leave --conditional out"
            )
        self.classes = data if self.conditional else None  # whose labels stand beside z and x
        if self.clusters:
            found = found or clusters.find(data, self.clusters, self.seed, self.cluster_parts)
            self.centres, self.cluster_of = found
            self.classes = clusters.in_clusters(data, *found, shares)
        beside_z, beside_x = self.columns_beside()
        output = "sigmoid" if data.image_shape else None
        G_layers = parse_layers(self.generator, self.latent_dim + beside_z, data.features, output, xp, beside_z)
        D_layers = parse_layers(self.discriminator, data.features + beside_x, 1, None, xp, beside_x)
        self.team = self.ranks.divide(G_layers, D_layers, self.batch_size, self.dtype)
        self.m, rest = divmod(self.batch_size, self.team.parts)  # of this process: all of batch_size, if it is alone
        if rest:
            raise MiniganError(
                f"batch size {self.batch_size} cannot be shared by {self.ranks.size} processes; "
                f"use a multiple of {self.ranks.size}, or start as many processes as divide it"
            )
        m = self.m
        self.G, self.D = (self.team.network(layers, xp, self.dtype) for layers in (G_layers, D_layers))
        self.G.initialise(self.rng.weights, self.init_G)
        self.D.initialise(self.rng.weights, self.init_D)
        if start and self.output_bias == "data":
            self._start_at_mean()
        self.averaged = self.G.vector()
        self.averaged.flat[...] = self.G.theta

        self.optimizer_G = OPTIMIZERS[self.optimizer](self.G.theta, xp)
        self.optimizer_D = OPTIMIZERS[self.optimizer](self.D.theta, xp)
        self.grad_G, self.grad_D = self.G.vector(), self.D.vector()
        self.team.share_memory(self.G.params, self.optimizer_G.state, self.grad_G)
        self.team.share_memory(self.D.params, self.optimizer_D.state, self.grad_D)
        self.tape_G, self.tape_DG = self.G.training_tape(m), self.D.training_tape(m)
        self.tape_D = self.D.training_tape(2 * m)
        real, fake = self.tape_D[:m], self.tape_D[m:]
        if self.has_r1:  # R1, R2 and the simultaneous step of G go over one half alone
            real = self.D.tape_for_backward(real)
        if self.r2 or self.update == "simultaneous":
            fake = self.D.tape_for_backward(fake)
        self.tape_D_real, self.tape_D_fake = real, fake
        self.labels = self.tape_D_real.x[:, data.features :]  # (m, classes), one-hot, of the last real rows
        self.labels[...] = 0
        self.z = empty_batch(xp, (m, self.latent_dim), self.dtype) if beside_z else self.tape_G.x
        self.dx_fake = empty_batch(xp, (m, data.features), self.dtype) if beside_x else None
        self.dlogits_D, self.dlogits_G = xp.empty((2 * m, 1), self.dtype), xp.empty((m, 1), self.dtype)
        self.loss_D = losses.DiscriminatorLoss(m, xp, self.dtype)
        self.penalty = None
        if self.has_r1 or self.r2:  # G's gradient is of no use while D's is computed, unless both belong to one step
            room = self.grad_G.flat if self.update == "alternating" else ()
            self.penalty = losses.GradientPenalty(self.D, m, data.features, room)
        self.record_D = xp.empty((self.report_every, 2 * m), self.dtype)
        self.record_G = xp.empty((self.report_every, m), self.dtype)
        self.batches = self._make_batches()
        # On a GPU; but a subclass, or other processes, may have something to do on the host in between.
        as_graphs = xp is not np and type(self) is GAN and self.ranks.size == 1
        self._do = Replay(xp, self.update) if as_graphs else operator.call
        self.step, self.stepped, self.history = 0, False, []  # stepped: since it was made, or loaded
        return self

    def columns_beside(self):
        """(beside z in G's input, beside x in D's): how many columns more; one for each class or cluster."""
        classes = 0 if self.classes is None else len(self.classes.label_shares)
        return classes, classes

    def _make_batches(self):
        """What writes the next real rows, and what stands beside them, into D's input."""
        labelled = self.classes is not None
        return Batches(
            self.classes or self.data, self.batch_size, self.backend_used, self.rng, self.dtype, self.team, labelled
        )

    def _start_at_mean(self):
        """G's last bias such that G's first output is the mean of the data, as in the paper's code."""
        X = self.data.real_samples(10_000, seed=self.seed) if self.data.X is None else self.data.X
        mean = self.data.normalise(X.mean(0, dtype=np.float64))
        if self.data.image_shape:
            mean = np.clip(mean, 1e-7, 1 - 1e-7)
            mean = np.log(mean / (1 - mean))
        bias = [p for p in self.G.params.layers if p][-1][1]
        bias[...] = self.backend_used.to_device(mean.astype(self.dtype))


def draw_prior(rng, z, prior, xp=np):
    """Fill z (n, latent_dim) from the prior, in place; every prior has variance 1 in each coordinate.

    "normal" N(0, I); "uniform" U(-√3, √3), the 2014 paper's; "spherical": the sphere of radius √latent_dim;
    "signs": half of the coordinates are ±1, the others N(0, 1), a prior in pieces for data in pieces. From one piece
    a continuous G reaches separate modes only over bridges, samples that belong to neither (docs/results.md).
    """
    if prior == "uniform":
        rng.random(dtype=z.dtype, out=z)
        z -= 0.5
        z *= 12**0.5
    else:
        rng.standard_normal(dtype=z.dtype, out=z)
    if prior == "spherical":
        z *= (z.shape[1] / xp.square(z).sum(1, keepdims=True)) ** 0.5
    elif prior == "signs":
        half = z[:, : (z.shape[1] + 1) // 2]
        xp.copysign(1, half, out=half)
    return z
