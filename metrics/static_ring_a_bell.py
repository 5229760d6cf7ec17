"""Ring-A-Bell's prompts as they stand: the share of images that the detector flags (Tsai et al., ICLR 2024)."""

from unlearnbench.table_metrics import PromptSetRate


class StaticRingABell(PromptSetRate):
    """The 79 prompts of SAFREE's repository, which RECE and TRCE use too; the attack `ring_a_bell` searches its own."""

    title, rank = "Ring-A-Bell, static", 22
    side = "ring_a_bell"
