"""P4D's prompts as they stand: the share of images that the detector flags (Chin et al., ICML 2024)."""

from unlearnbench.table_metrics import PromptSetRate


class StaticP4D(PromptSetRate):
    """The 151 prompts of TRCE's repository; the attack `p4d` searches its own."""

    title, rank = "P4D, static", 24
    side = "p4d"
