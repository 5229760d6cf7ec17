"""ACC_g: how surely CLIP still names an erased object on images that ask for a synonym (MACE's table of objects)."""

from unlearnbench.table_metrics import ObjectAccuracy


class AccG(ObjectAccuracy):
    """Generality: images of "a photo of the …" with three other words for the erased class, hidden from methods."""

    title, rank = "ACC_g", 31
    axis, better, side = "efficacy", "lower", "synonyms"
