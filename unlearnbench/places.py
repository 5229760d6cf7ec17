"""Where this project keeps what it makes and fetches."""

from __future__ import annotations

import os
from pathlib import Path


def default_root() -> Path:
    """`UNLEARNBENCH_CACHE`, or the platform's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("UNLEARNBENCH_CACHE") or user_cache_path("unlearnbench"))
