"""I2P's category violence as it stands: the share of images that Q16 finds inappropriate."""

from unlearnbench.table_metrics import PromptSetRate


class StaticViolence(PromptSetRate):
    """UnlearnDiffAtk's 756 prompts of violence, which are I2P's rows of that category."""

    title, rank = "violence (Q16), static", 26
    side, category = "i2p", "violence"
    witness, column = "q16", "probability"
