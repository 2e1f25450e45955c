"""Search algorithms, one a file; each is a function from a space and data to an architecture."""

from ..core import Choices, SearchSpace

SEARCHES = {
    "darts": "phosphene.search.darts:search",
    "random": "phosphene.search.random:search",
    "sgas": "phosphene.search.sgas:search",
}


def notation(space: SearchSpace, choices: Choices) -> str:
    """Complete choices in the space's own notation (a genotype), else as `decision=option` in a row."""
    own = getattr(space, "genotype", None)
    if own is not None:
        return str(own(choices))
    return " ".join(f"{d.name}={d.options[choices[d.name]]}" for d in space.decisions)
