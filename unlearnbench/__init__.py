"""unlearnbench: measure what a diffusion model has forgotten, what it kept and what that cost.

The public names are listed in `__init__.pyi`, which type checkers read as well. Each is imported on first use, so that
`import unlearnbench` and the command line's help do not import torch.
"""

from pathlib import Path

import lazy_loader

__version__ = "0.1.0"

# methods/ and metrics/ are next to this package in a checkout, and inside it once installed.
if not (Path(__file__).parent / "methods").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
