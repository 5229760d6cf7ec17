"""unlearnbench: measure what a diffusion model has forgotten, what it kept and what that cost.

The public names are listed in `__init__.pyi`, which type checkers read as well. Each is imported on first use, so that
`import unlearnbench` and the command line's help do not import torch.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import lazy_loader

__version__ = "0.1.0"

# methods/ and metrics/ are next to this package in a checkout, and inside it once installed.
if not (Path(__file__).parent / "methods").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

FUNCTIONS = ("compare", "leaderboard")
"""Public functions with the name of a package."""


class _CallableModule(ModuleType):
    """A package that is the public function of its name too: once imported, it hides the function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function; see `unlearnbench.api`."""
        return getattr(import_module(f"{__name__}.api"), self.__name__.rpartition(".")[2])(*args, **options)


class _Package(ModuleType):
    """This package, which makes those of `FUNCTIONS` callable as they are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FUNCTIONS and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
