"""A file's name is its option's name: the one mechanism behind every seam.

`load("training.backbones", "deepfm")` imports `training.backbones.deepfm`. A name with a dot is a
module of somebody else. Files whose name begins with an underscore are not options.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from service.contract.errors import UnknownOption


def names(package: str) -> list[str]:
    """The options of a package, sorted."""
    path = importlib.import_module(package).__path__
    return sorted(found.name for found in pkgutil.iter_modules(path) if not found.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import the option `name` of `package`.

    Raises:
        UnknownOption: there is no such file; the text lists those that there are.
    """
    if "." in name and not name.startswith("."):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UnknownOption(f"no module {name!r} for {package}: {error}") from error
    if name not in names(package):
        raise UnknownOption(f"{package} has no {name!r}; it has {', '.join(names(package))}")
    return importlib.import_module(f"{package}.{name}")
