"""All conditionals p(x_S | x_notS) with one network that takes the mask: conclusion 3 of Goodfellow et al. 2014.

G gets [z, mask·x, mask] and fills in what is missing; what is given stays as it is,

    x̂ = mask·x + (1 - mask)·G(z, mask·x, mask),

so that G's gradient is D's, times 1 - mask. D gets [x, mask] for real rows and [x̂, mask] for generated ones, with the
same masks, and so compares the joint distributions of what is given and what is filled in (as GAIN does, Yoon et al.
2018, arXiv 1806.02920, but D is told the mask and judges the whole row). Its optimum is p_data / (p_data + p_g) of
(x, mask), and p(given, mask) is the same on both sides: what is left is p(x_S | x_notS), for every mask at once.
"""

import numpy as np

from minigan import losses
from minigan.batches import Batches
from minigan.errors import MiniganError
from minigan.gan import GAN, STREAMS


class MaskedGAN(GAN):
    """A GAN that fills in whatever is missing of a row: every conditional of the data's distribution in one network.

        gan = MaskedGAN(steps=5000).fit(X)
        x = gan.complete(x, mask)       # mask: 1 where x is given, 0 where it is to be filled in
        x = gan.sample(64)              # nothing given: the joint distribution

    ``masks(rng, n, data)`` gives the masks to train with, (n, features) of 0 and 1, fresh ones for each minibatch;
    None: ``draw_masks``. Options, ``fit`` and the rest are GAN's; wherever a conditional GAN has the labels beside x,
    this one has the mask: ``labels`` (m, features) are the last real rows' masks. ``checkpoint`` refuses it.
    Raises MiniganError for conditional=True, clusters, another backend than NumPy, or several processes.
    """

    def __init__(self, masks=None, **options):
        super().__init__(**{"backend": "numpy", **options})
        if self.conditional or self.clusters or self.backend != "numpy" or self.ranks.size > 1:
            raise MiniganError("a masked GAN has conditional False, clusters 0, backend 'numpy' and one process")
        if not (masks is None or callable(masks)):
            raise MiniganError(f"masks is {masks!r}; it must be a function of (rng, n, data), or None")
        self.masks = masks or draw_masks

    def columns_beside(self):
        """[mask·x, mask] stand beside z in G's input, the mask beside x in D's."""
        return 2 * self.data.features, self.data.features

    def _make_batches(self):
        seed = np.random.SeedSequence(self.seed).spawn(len(STREAMS) + 1)[-1]  # the one after GAN's own
        self.rng.masks = np.random.Generator(np.random.SFC64(seed))
        return MaskedBatches(self.masks, self.data, self.m, self.backend_used, self.rng, self.dtype, self.team)

    def _generate(self):
        """x̂ (m, features): the last real rows, what their masks leave out filled in by G with fresh z."""
        x, mask = self.tape_D_real.x[:, : self.data.features], self.labels
        G_input = self._beside(self.draw_z(), x, mask)
        return np.where(mask, x, self.G.forward(G_input, self.tape_G, self.rng.dropout))

    def _backward_G(self, tape):
        """As GAN's, with dG = (1 - mask)·dx̂: what is given is not G's doing."""
        dlogits = losses.generator_gradient(tape.out, self.dlogits_G, self.loss)
        dx_hat = self.D.backward(dlogits, tape)[:, : self.data.features]
        dx_fake = np.multiply(dx_hat, 1 - self.labels, out=self.dx_fake)
        self.G.backward(dx_fake, self.tape_G, self.grad_G, need_dx=False)

    def _beside(self, z, x, mask):
        """[z, mask·x, mask] (n, latent_dim + 2 features); what is missing of x may be NaN."""
        return np.concatenate([z, np.where(mask, x, 0), mask], axis=1)

    # -- What a person sees ----------------------------------------------------------------------------

    def complete(self, x, mask, seed=None, average=True):
        """x (n, features) in the data's units, with what is missing drawn from p(missing | given); other z, other draw.

        mask: (n, features), or (features,) for all rows, 1 or True where x is given; the rest of x is not looked at,
        and may be NaN. What is given comes back bit for bit. ``seed`` and ``average`` as in ``sample``.
        """
        self._need_networks()
        x, mask = np.asarray(x), np.asarray(mask)
        if x.ndim != 2 or x.shape[1] != self.data.features or mask.shape not in (x.shape, x.shape[1:]):
            raise MiniganError(
                f"x has shape {x.shape} and mask {mask.shape}; give rows of {self.data.features} numbers, "
                "and a mask for each row or one for all"
            )
        if not np.isin(mask, (0, 1)).all():
            raise MiniganError("the mask has values that are neither 0 (missing) nor 1 (given); give only these two")
        mask = np.broadcast_to(mask, x.shape)
        if not np.isfinite(x[mask == 1]).all():
            raise MiniganError("x has a number that is not finite where the mask is 1; set the mask to 0 there")
        filled = self.sample(len(x), seed, average, labels=(self.data.normalise(x), mask))
        return np.where(mask, x, filled)

    def decode(self, z, average=True, labels=None):
        """As GAN.decode. ``labels``: (x, mask) (n, features) each, x in the network's units; None: nothing is given."""
        self._need_networks()
        x, mask = np.zeros((2, len(z), self.data.features)) if labels is None else labels
        return super().decode(self._beside(z, x, mask), average)

    def probability(self, x, mask=None):
        """D(x, mask) (n,): the probability that x (n, features) is real, if ``mask`` of it was given; None: nothing."""
        self._need_networks()
        x, columns = np.asarray(x), self.data.features
        if x.ndim != 2 or x.shape[1] != columns or np.shape(mask) not in ((), x.shape, x.shape[1:]):
            raise MiniganError(
                f"x has shape {x.shape} and mask {np.shape(mask)}; give rows of {columns} numbers, and a mask for each "
                "row or one for all"
            )
        mask = np.broadcast_to(0 if mask is None else mask, x.shape)
        logits = self._in_blocks(self.D, np.concatenate([self.data.normalise(x), mask], axis=1))
        return losses.sigmoid(logits[:, 0])


class MaskedBatches(Batches):
    """Minibatches with a fresh mask behind each row."""

    def __init__(self, masks, *rest):
        super().__init__(*rest)
        self.masks = masks

    def next(self, out):
        """Write the next minibatch and its masks into out (m, 2 features)."""
        columns = self.data.features
        super().next(out[:, :columns])
        mask = np.asarray(self.masks(self.rng.masks, len(out), self.data))
        if mask.shape != (len(out), columns) or not ((mask == 0) | (mask == 1)).all():
            raise MiniganError(
                f"masks gave an array of shape {mask.shape} and dtype {mask.dtype}; it must be "
                f"({len(out)}, {columns}) of 0 (missing) and 1 (given)"
            )
        out[:, columns:] = mask


def draw_masks(rng, n, data):
    """n masks (n, features) for training, 1 where x is given.

    Tables: each number is given with probability 1/2. Images: one half of the masks gives one half of the image, left,
    right, top or bottom; the others give each pixel with a probability that is drawn anew for each, from U(0, 1).
    """
    if not data.image_shape:
        return rng.integers(0, 2, (n, data.features))
    height, width = data.image_shape[:2]
    mask = rng.random((n, height, width)) < rng.random((n, 1, 1))
    column, row = np.arange(width) < width / 2, np.arange(height)[:, None] < height / 2
    halves = np.stack([np.broadcast_to(half, mask.shape[1:]) for half in (column, ~column, row, ~row)])
    rows = np.flatnonzero(rng.random(n) < 0.5)
    mask[rows] = halves[rng.integers(0, 4, len(rows))]
    return np.repeat(mask.reshape(n, -1), data.features // (height * width), axis=1)  # all colours of a pixel
