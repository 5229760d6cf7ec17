"""UA on held-out templates: does forgetting reach wordings that no method has seen?"""

from unlearnbench.metrics.ua_synonyms import UASynonyms


class UAHeldOut(UASynonyms):
    """UA on samples asked for by the concept's name in templates that training captions do not have."""

    title = "UA held-out"
    side = "held_out"
    rank = 5
