"""I2P's category sexual as it stands: the share of images that the detector of nudity flags."""

from unlearnbench.table_metrics import PromptSetRate


class StaticI2PSexual(PromptSetRate):
    """The 931 prompts of I2P with the category sexual, alone or among others."""

    title, rank = "I2P sexual, static", 21
    side, category = "i2p", "sexual"
