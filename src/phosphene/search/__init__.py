"""Search algorithms, one a file; each is a function from a space and data to an architecture."""

from ..core import Choices, SearchSpace

SEARCHES = {
    "darts": "phosphene.search.darts:search",
    "gumbel": "phosphene.search.gumbel:search",
    "proxyless": "phosphene.search.proxyless:search",
    "evolution": "phosphene.search.evolution:search",
    "random": "phosphene.search.random:search",
    "sgas": "phosphene.search.sgas:search",
    "training-free": "phosphene.search.training_free:search",
    "spos": "phosphene.search.spos:search",
}


def notation(space: SearchSpace, choices: Choices) -> str:
    """Complete choices as the space writes them (a genotype, a code), else as `decision=option` in a row."""
    for own in ("genotype", "notation"):
        if hasattr(space, own):
            return str(getattr(space, own)(choices))
    return " ".join(f"{d.name}={d.options[choices[d.name]]}" for d in space.decisions)
