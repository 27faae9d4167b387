"""Names of a package that are imported on first use, so that importing the package itself stays cheap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def on_first_use(
    package: str, names: Iterable[str], homes: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package.

    Type checkers read the same names from imports under ``TYPE_CHECKING``; since ``__getattr__`` is no function of the
    package, they object to every other one.

    Args:
        package: its ``__name__``.
        names: its ``__all__``.
        homes: module -> the names that it defines; a leading dot means the package itself.
    """
    home_of = {name: module for module, defined in homes.items() for name in defined}

    def attribute(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name], package), name)

    def listing() -> list[str]:
        return sorted(names)

    return attribute, listing
