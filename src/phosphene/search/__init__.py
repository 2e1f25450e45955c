"""Search algorithms, one a file; each is a function from a space and data to an architecture."""
