"""UA on direct prompts: little more than the concept's name, with which most methods are trained."""

from unlearnbench.metrics.ua_synonyms import UASynonyms


class UADirect(UASynonyms):
    """UA on samples asked for by the concept's name, alone or beside one word of another domain."""

    title = "UA direct"
    side = "direct"
    rank = 2
