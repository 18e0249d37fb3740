"""The errors that a person is meant to read."""


class MiniganError(ValueError):
    """A mistake the user can mend; the message is one sentence with the offending value and the remedy."""


class Diverged(MiniganError):
    """Training has produced a NaN or an infinity."""
