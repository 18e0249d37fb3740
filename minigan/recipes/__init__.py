"""Named recipes: one small file of options each, for one reproducible experiment."""

import tomllib
from importlib import resources
from pathlib import Path

from minigan.errors import MiniganError


def names():
    """The names of the recipes that come with minigan, sorted."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name):
    """The options in a recipe, a dict. ``name``: one of ``names()``, or the path of a .toml file of your own.

    Raises MiniganError if there is no such recipe or it is not valid TOML.
    """
    own = str(name).endswith(".toml")
    if not own and name not in names():
        raise MiniganError(f"recipe '{name}' does not exist; choose one of {', '.join(names())}, or give a .toml file")
    file = Path(name) if own else resources.files(__package__).joinpath(f"{name}.toml")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MiniganError(f"recipe '{name}' cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a number with 5,000 digits
        raise MiniganError(
            f"recipe '{name}' is not valid TOML: {error}; compare it with the recipes of minigan"
        ) from error
