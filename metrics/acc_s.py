"""ACC_s: how surely CLIP names the other objects on images that ask for them (MACE's table of objects)."""

from unlearnbench.table_metrics import ObjectAccuracy


class AccS(ObjectAccuracy):
    """Specificity: images of "a photo of the …" with the name of each class that is kept."""

    title, rank = "ACC_s", 30
    axis, better, side = "utility", "higher", "retain"
    kept = True
