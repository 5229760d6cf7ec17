"""UA on direct prompts: little more than the concept's name, which most methods are trained with."""

from unlearnbench.metrics.ua_synonyms import UASynonyms


class UADirect(UASynonyms):
    """UA on samples of prompts with the concept's name, alone or with one word of another domain."""

    title = "UA direct"
    side = "direct"
    rank = 2
