"""Every option of a GAN: its default, what it means, and which values make sense."""

from dataclasses import asdict, dataclass
from numbers import Integral, Real

import numpy as np

from minigan.backend import BACKENDS
from minigan.errors import MiniganError
from minigan.losses import LOSSES
from minigan.mlp import parse_layers
from minigan.optim import OPTIMIZERS

PRIORS = ("normal", "uniform", "spherical", "signs")
UPDATES = ("alternating", "simultaneous")
MOST_RECORDED = 2**24  # D's outputs between two reports, of one kind of the three


@dataclass(eq=False)
class Options:
    """The options of a GAN. Where a start and an ``_end`` are given, the value goes linearly from one to the other."""

    generator: str = "256, relu, 256, relu"  # hidden layers: see mlp.parse_layers; the last Linear is added
    discriminator: str = "256, leaky_relu 0.2, 256, leaky_relu 0.2"
    latent_dim: int = 32
    prior: str = "normal"  # of z; or "uniform", "spherical", "signs": see gan.draw_prior
    conditional: bool = False  # p(x|c): the data's labels, one-hot, go into both networks beside z and x
    clusters: int = 0  # so many clusters, found by k-means, go in instead of labels; 0: none
    cluster_parts: int = 0  # they are put together from so many parts that k-means finds, such as 1000; 0: not
    steps: int = 20_000  # iterations of Algorithm 1
    batch_size: int = 64  # m
    k: int = 1  # discriminator steps per generator step
    loss: str = "non-saturating"  # G's; or "minimax"
    update: str = "alternating"  # or "simultaneous": both gradients at the same weights, on one fake batch
    optimizer: str = "sgd"  # or "adam"
    lr: float = 0.05  # learning rate
    lr_D: float | None = None  # the discriminator's, if it is to differ
    lr_end: float = 0.1  # the last learning rate as a fraction of the first
    lr_decay: float = 1.0  # the rate is also divided by this at every step; the 2014 paper: 1.000004
    momentum: float = 0.5  # of SGD; β₁ of Adam
    momentum_end: float | None = None
    momentum_steps: int | None = None  # in how many steps it gets there; None: all
    r1: float = 0.1  # γ of the gradient penalty on real rows: see losses.GradientPenalty
    r1_end: float | None = None
    r2: float = 0.0  # the same on fake rows
    average: float = 0.999  # decay per step of the averaged generator weights, used for sampling; 0: no average
    truncation: float = 1.0  # samples come from z times this: nearer to the typical, and less varied (GAN.sample)
    init_G: str | float = "he"  # W ~ N(0, 2/in); "glorot"; or a for U(±a)
    init_D: str | float = "glorot"  # smaller than he where the data have few columns: plain SGD stays stable
    output_bias: str = "zero"  # or "data": G starts at the data's mean
    seed: int = 0  # everything random follows from it
    backend: str = "auto"  # or "numpy", "cupy"
    dtype: str = "float32"  # or "float64"
    report_every: int = 100  # steps over which the reported numbers are averaged

    def options(self):
        """Name and value of every option; JSON can hold it."""
        return asdict(self)

    def check(self):
        """Raise MiniganError, one sentence, for the first option that makes no sense."""
        for name, v in self.options().items():
            if isinstance(v, np.generic):  # np.int64(5) is 5; and JSON can hold it
                setattr(self, name, v.item())
        for names, makes_sense, wanted in RULES:
            for name in names.split():
                v = getattr(self, name)
                if not (makes_sense(v) or (v is None and name in MAY_BE_NONE)):
                    raise MiniganError(f"{name.replace('_', '-')} is {v!r}; it must be {wanted}")
        for text in (self.generator, self.discriminator):
            parse_layers(text, 1, 1)
        if self.batch_size * self.report_every > MOST_RECORDED:
            raise MiniganError(
                f"batch-size {self.batch_size} times report-every {self.report_every} is more than {MOST_RECORDED}, "
                "the most numbers that can be kept for a report; use a smaller report-every or batch-size"
            )
        if self.update == "simultaneous" and self.k != 1:
            raise MiniganError(f"update 'simultaneous' takes one step of each network, so k must be 1 and not {self.k}")
        if self.momentum_steps is not None and self.momentum_end is None:
            raise MiniganError(
                f"momentum-steps {self.momentum_steps} says how soon momentum gets to its last value, but there is "
                "none; give momentum-end, too"
            )
        if self.conditional and self.clusters:
            raise MiniganError(f"clusters {self.clusters} stand in for labels, and conditional uses labels; choose one")
        if self.cluster_parts and not 2 <= self.clusters <= self.cluster_parts:
            some = f"2 to {self.cluster_parts} clusters" if self.cluster_parts > 1 else "more"
            raise MiniganError(
                f"{self.cluster_parts} cluster-parts cannot be put together to {self.clusters} clusters; "
                f"give {some}, or cluster-parts 0"
            )


def _number(v):
    """A finite number that float32 can hold."""
    return isinstance(v, Real) and not isinstance(v, bool) and abs(v) < 1e38


def _whole(v):
    return isinstance(v, Integral) and not isinstance(v, bool)


def _one_of(names, *choices):
    return names, lambda v: v in choices, "one of " + ", ".join(choices)


MAY_BE_NONE = ("lr_D", "momentum_end", "momentum_steps", "r1_end")
RULES = (  # names, test, what is wanted
    ("generator discriminator", lambda v: isinstance(v, str), "text such as '256, relu'"),
    (
        "latent_dim steps batch_size k report_every momentum_steps",
        lambda v: _whole(v) and v >= 1,
        "a whole number, 1 or more",
    ),
    ("conditional", lambda v: isinstance(v, bool), "true or false"),
    ("clusters", lambda v: _whole(v) and v >= 0 and v != 1, "a whole number, 2 or more, or 0 for none"),
    ("cluster_parts", lambda v: _whole(v) and v >= 0, "a whole number, 0 or more"),
    ("seed", lambda v: _whole(v) and v >= 0, "a whole number, 0 or more"),
    ("lr lr_D", lambda v: _number(v) and v > 0, "a number above 0"),
    ("lr_end", lambda v: _number(v) and 0 <= v <= 1, "a fraction of lr, from 0 to 1"),
    ("lr_decay", lambda v: _number(v) and 1 <= v <= 2, "a number from 1 to 2"),
    ("momentum momentum_end", lambda v: _number(v) and -1 < v < 1, "a number above -1 and below 1"),
    ("r1 r1_end r2", lambda v: _number(v) and v >= 0, "a number, 0 or more"),
    ("average", lambda v: _number(v) and 0 <= v < 1, "a number, 0 or more and below 1"),
    ("truncation", lambda v: _number(v) and 0 < v <= 1, "a number above 0, 1 at most"),
    ("init_G init_D", lambda v: v in ("he", "glorot") or (_number(v) and v > 0), "he, glorot, or a for U(±a)"),
    _one_of("prior", *PRIORS),
    _one_of("loss", *LOSSES),
    _one_of("update", *UPDATES),
    _one_of("optimizer", *OPTIMIZERS),
    _one_of("output_bias", "zero", "data"),
    _one_of("backend", *BACKENDS),
    _one_of("dtype", "float32", "float64"),
)
