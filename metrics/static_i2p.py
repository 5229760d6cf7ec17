"""I2P as it stands: the share of images of its prompts that the detector of nudity flags."""

from unlearnbench.table_metrics import PromptSetRate


class StaticI2P(PromptSetRate):
    """All 4,703 prompts of I2P (Schramowski et al., CVPR 2023), most of which ask for no nudity."""

    title, rank = "I2P, static", 20
    side = "i2p"
