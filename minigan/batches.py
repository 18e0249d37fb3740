"""Minibatches of a Dataset, on the device."""

import numpy as np

from minigan.backend import empty
from minigan.errors import MiniganError


class Batches:
    """The next minibatch, in the network's units, on the device and without a copy between host and device.

    A finite data set lies on the device whole; each epoch visits it in a new order, drawn on the host so that
    a CPU and a GPU run see the same rows, and leaves out the last rows if they do not fill a batch. A stream is
    drawn afresh, on the device, in blocks of many batches because each draw is several small operations.
    """

    BLOCK = 64  # batches of a stream drawn at once

    def __init__(self, data, batch_size, backend, rng, dtype, team, labelled=False):
        """rng.order is a host generator, rng.stream one on the device; team: see parallel.py.

        labelled: each row is followed by its one-hot label.
        """
        self.data, self.batch_size, self.backend, self.xp = data, batch_size, backend, backend.xp
        self.rng, self.dtype, self.labelled = rng, dtype, labelled
        self.m = batch_size // team.parts
        self.first = team.part * self.m  # of this process's rows in a batch
        self.shift, self.scale = (backend.to_device(a.astype(dtype)) for a in (data.shift, data.scale))
        self.position = 0
        self.order = None  # this epoch's row numbers, or the block of a stream drawn ahead
        if data.X is not None:
            same_units = not data.shift.any() and (data.scale == 1).all()  # then no second copy is needed
            X = data.X if same_units else data.normalise(data.X)
            if labelled:
                X = np.concatenate([X, data.one_hot(data.labels)], axis=1)
            self.X = backend.to_device(X.astype(dtype, copy=False))
            # Checking the bounds costs NumPy a copy of the batch; CuPy never checks and has no such option.
            self.take_options = {"mode": "clip"} if self.xp is np else {}
            self.rowwise = empty(np, (self.m, self.X.shape[1]), dtype) if self.xp is np else None  # for _take

    def next(self, out):
        """Write this process's rows of the next minibatch into out (m, columns): all rows, if it is alone."""
        if self.data.X is None and self.data.draw is None:
            raise MiniganError("this GAN was loaded without its data; load it with them: checkpoint.load(folder, data)")
        i = self.position
        if self.order is None or i + self.batch_size > len(self.order):
            self.order = None  # so that there are never two
            self.order, i = self._draw(), 0
        self.position = i + self.batch_size
        rows = self.order[i + self.first : i + self.first + self.m]
        if self.data.X is None:
            out[...] = rows
        else:
            self._take(rows, out)

    def _take(self, rows, out):
        """The rows of those numbers into ``out``; by way of an array that lies row by row, if ``out`` does not, for
        NumPy would make one in each call."""
        rowwise = out if out.flags.c_contiguous else self.rowwise
        self.xp.take(self.X, rows, axis=0, out=rowwise, **self.take_options)
        if rowwise is not out:
            out[...] = rowwise

    def _draw(self):
        if self.data.X is None:
            x = self.data.draw(self.BLOCK * self.batch_size, self.rng.stream, self.xp)
            rows = (x.astype(self.dtype, copy=False) - self.shift) / self.scale
            return self.xp.concatenate([rows, self._one_hot(x)], axis=1) if self.labelled else rows
        return self.backend.to_device(self.rng.order.permutation(len(self.data.X)))

    def _one_hot(self, x):
        """The labels of a stream's rows (n, features), in the data's units, as (n, classes)."""
        classes = self.xp.arange(len(self.data.label_shares))
        return (self.data.label_of(x, self.xp)[:, None] == classes).astype(self.dtype)

    def state(self):
        """(order or block as a host array, position): what ``restore`` needs beside the generators' states."""
        order = np.empty(0, np.int64) if self.order is None else self.backend.to_host(self.order)
        return order, self.position

    def restore(self, order, position):
        """Continue where ``state`` was taken."""
        self.order = self.backend.to_device(order) if len(order) else None
        self.position = int(position)
