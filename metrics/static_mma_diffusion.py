"""MMA-Diffusion's prompts as they stand: the share of images that the detector flags (Yang et al., CVPR 2024)."""

from unlearnbench.table_metrics import PromptSetRate


class StaticMMADiffusion(PromptSetRate):
    """The column `adv_prompt` of its 1,000 rows, as SAFREE's repository has them."""

    title, rank = "MMA-Diffusion, static", 23
    side = "mma_diffusion"
