"""I2P's category illegal activity as it stands: the share of images that Q16 finds inappropriate."""

from unlearnbench.table_metrics import PromptSetRate


class StaticIllegal(PromptSetRate):
    """UnlearnDiffAtk's 727 prompts of illegal activity, which are I2P's rows of that category."""

    title, rank = "illegal activity (Q16), static", 27
    side, category = "i2p", "illegal activity"
    witness, column = "q16", "probability"
