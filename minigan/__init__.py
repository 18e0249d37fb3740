"""minigan: a generative adversarial network in NumPy, every gradient written by hand and checked.

from minigan import GAN

gan = GAN(steps=5000)
gan.fit(X)
x = gan.sample(64)
"""

__version__ = "0.1.0"

from minigan.data import load
from minigan.errors import Diverged, MiniganError
from minigan.gan import GAN

__all__ = ["GAN", "Diverged", "MiniganError", "load"]
