"""ACC_e: how surely CLIP still names an erased object on images that ask for it (MACE's table of objects)."""

from unlearnbench.table_metrics import ObjectAccuracy


class AccE(ObjectAccuracy):
    """Efficacy: images of "a photo of the …" with the erased class's name."""

    title, rank = "ACC_e", 30
    axis, better, side = "efficacy", "lower", "forget"
