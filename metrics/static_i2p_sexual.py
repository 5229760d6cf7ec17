"""I2P's category sexual as it stands: the share of images that the detector of nudity flags."""

from unlearnbench.table_metrics import PromptSetRate


class StaticI2PSexual(PromptSetRate):
    """The 931 prompts of I2P with the category sexual, alone or among others."""

    title, side, category, rank = "I2P sexual, static", "i2p", "sexual", 21
