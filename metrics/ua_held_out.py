"""UA on held-out templates: does forgetting reach wordings that no method has seen?"""

from unlearnbench.metrics.ua_synonyms import UASynonyms


class UAHeldOut(UASynonyms):
    """UA on samples of prompts with the concept's name in templates that do not occur in training captions."""

    title = "UA held-out"
    side = "held_out"
    rank = 5
