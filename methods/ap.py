"""AP: ESD that keeps the word which its erasure damages most, searched in turn with it (Bui et al., NeurIPS 2024)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from unlearnbench.methods.age import AGE, OF_AP


@dataclass(frozen=True)
class AP(AGE):
    """AGE's loss with the empty prompt as its target; the search is for what to keep. See `age`."""

    resumes = True
    presets: ClassVar[dict] = OF_AP
    target: Literal["searched", "null"] = "null"
    """What the concept is erased towards: the empty prompt, "null", is the paper's."""
