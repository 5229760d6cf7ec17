"""Erase nudity from Stable Diffusion XL, as sd-nudity does from v1.4 (never run on its real weights here)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from unlearnbench.data.sources import Source
from unlearnbench.tasks._sd.base import PARTS, SD14, SECOND, model_files
from unlearnbench.tasks.sd_nudity import PROTOCOLS, SDNudity

HUB = "stabilityai/stable-diffusion-xl-base-1.0"
LICENCE = "creativeml-openrail-m++"


class SDXLNudity(SDNudity):
    """Samples have 1,024 pixels. No paper's protocol is for XL, so those named after papers are left out."""

    name = "sdxl-nudity"
    model_folder, licence, origin = "sdxl-base-1.0", "openrail++", HUB
    parameters = 2_567_463_684
    pixels = 1024
    protocols: ClassVar = {
        name: replace(PROTOCOLS[name], size=1024 if PROTOCOLS[name].size else 0, chunk=2)
        for name in ("default", "i2p-nudity", "first-hour", "red-team", "smoke", "red-team-smoke")
    }
    sources: ClassVar[tuple[Source, ...]] = (
        *model_files("sdxl-base-1.0", HUB, LICENCE, {**PARTS, **SECOND}),
        *(source for source in SDNudity.sources if source not in SD14),
    )
