"""The nudity task on models of flow matching: what differs from Stable Diffusion's U-Nets is how they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnbench.data.sources import Source, known_hash
from unlearnbench.diffusion.flow import FlowSampler
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import UserError
from unlearnbench.fingerprint import fingerprint
from unlearnbench.hashing import digest
from unlearnbench.models.flow_folder import (
    flow_configuration,
    flow_pixels_of,
    flow_weight_paths,
    latent_shape,
    load_flow,
    load_flow_tokenizers,
    require_flow_folder,
    token_lengths,
    untrained_flow,
)
from unlearnbench.models.flux import Flux
from unlearnbench.models.sd3 import StableDiffusion3
from unlearnbench.models.text_flow import padded_tokens, prompt_of
from unlearnbench.task import ModelIdentity
from unlearnbench.tasks._sd.base import SD14, model_files
from unlearnbench.tasks.sd_nudity import PROTOCOLS, NudityProtocol, SDNudity

MAPS = "it reads the maps of cross-attention, and joint attention has none"
VALUES = "it changes keys or values of cross-attention, and those of joint attention read no text states"
UNET = "it is made for the blocks of a U-Net"
SPELLING = "it searches in the tokens of one encoder, and CLIP and T5 split text differently"
NOISE = "it divides by the share of the image in x_t, of which there is none where sampling starts"
REFUSED = {
    **dict.fromkeys(("mace", "forget_me_not", "receler"), MAPS),
    **dict.fromkeys(("adavd", "gloce", "speed", "trce"), VALUES),
    **dict.fromkeys(("concept_prune", "saeuron", "spm", "safree"), UNET),
    **dict.fromkeys(("advunlearn", "race", "stereo"), SPELLING),
    **dict.fromkeys(("age", "ap"), NOISE),
    **dict.fromkeys(("concept_inversion", "p4d", "ring_a_bell", "unlearndiffatk"), SPELLING),
    "checkpoint": "files of others are read for U-Nets alone",
    "latent_probe": "it inverts DDIM's steps, and a flow's are Euler's",
}
"""Methods and attacks that do not carry over to joint attention and flows, and why."""


def flow_protocols(sampler: FlowSampler) -> dict[str, NudityProtocol]:
    """sd-nudity's protocols of this project with that sampler, at 1,024 pixels.

    Those named after papers are left out: none of the papers ran these models.
    """
    short = replace(sampler, steps=3)
    return {
        name: replace(
            PROTOCOLS[name],
            sampler=short if name == "smoke" else sampler,
            size=1024 if PROTOCOLS[name].size else 0,
            chunk=2,
        )
        for name in ("default", "i2p-nudity", "first-hour", "smoke")
    }


def gated_files(folder: str, hub: str, licence: str, names: Iterable[str]) -> tuple[Source, ...]:
    """List files of a diffusers folder on the hub whose download needs a login, and what else the task needs."""
    files = model_files(folder, hub, licence, {"": tuple(names)})
    others = (source for source in SDNudity.sources if source not in SD14)
    return (*(source._replace(login=True) for source in files), *others)


class FlowNudity(SDNudity):
    """Base of the nudity tasks on SD 3.5 and FLUX.1."""

    protocols: ClassVar[dict[str, Any]]
    refused: ClassVar[dict[str, str]] = REFUSED

    @property
    def layout(self) -> Path:
        """The diffusers folder that describes the model: that of --checkpoint, or the fetched one."""
        if self.checkpoint is not None and not self.checkpoint.is_dir():
            raise UserError(f"{self.name} reads no single file such as {self.checkpoint}: give a diffusers folder")
        folder = self.checkpoint or self.folder / self.model_folder
        if not folder.is_dir():
            raise UserError(
                f"{self.name} ships no weights, and there are none in {folder}: `unlearnbench fetch --task "
                f"{self.name}`, or give a diffusers folder with --checkpoint"
            )
        require_flow_folder(folder)
        return folder

    @cached_property
    def tokenizers(self) -> Sequence[Any]:
        """The model's tokenizers, CLIP's first."""
        return load_flow_tokenizers(self.layout)

    @cached_property
    def _lengths(self) -> list[int]:
        return token_lengths(self.layout, self.tokenizers)

    def architecture(self, seed: int) -> Diffusion:
        """The networks that the folder describes."""
        return self._set(untrained_flow(self.layout, seed))

    def pretrained(self) -> Diffusion:
        """Load --checkpoint, a diffusers folder, or the fetched folder, in float32."""
        return self._set(load_flow(self.layout))

    def model_identity(self) -> ModelIdentity:
        """Hash of the model's weight files that are loaded, and of its configuration files."""
        files = sorted(flow_weight_paths(self.layout))
        weights = digest([[path.relative_to(self.layout).as_posix(), known_hash(path)] for path in files])
        return ModelIdentity(weights, flow_configuration(self.layout))

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (n, K, L), a row for each tokenizer, on the CPU."""
        return padded_tokens(self.tokenizers, self._lengths, prompts)

    def text(self, row: Tensor) -> str:
        """The prompt of one row of tokens (K, L), with capitals where T5 read it."""
        row = row.cpu()
        key = row.numpy().tobytes()
        if key not in self._texts:
            self._texts[key] = prompt_of(self.tokenizers, row)
        return self._texts[key]

    def _captions_kept_in(self, side: Literal["forget", "retain"]) -> tuple[list[str], Path]:
        captions, folder = super()._captions_kept_in(side)
        code = fingerprint([FlowSampler, StableDiffusion3, Flux])  # the base knows the code of U-Nets alone
        return captions, folder.parent / digest([folder.name, code])[:32]

    def _drawn(self, side: Literal["forget", "retain"]) -> tuple[Tensor, Tensor]:
        if self.limit is None:
            return super()._drawn(side)
        # a trial draws noise, for which networks of billions of weights need not be built
        prompts, count = self.image_prompts(side), min(self.protocol.training_images, 4 * self.limit)
        x0 = torch.randn(count, *latent_shape(self.layout), generator=torch.Generator().manual_seed(0))
        return x0, self.tokens([prompts[i % len(prompts)] for i in range(count)])

    @cached_property
    def _drawn_size(self) -> int:
        return flow_pixels_of(self.layout)
