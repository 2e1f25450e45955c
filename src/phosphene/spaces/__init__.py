"""Search spaces: each file is one, with its supernet, its networks and its published architectures."""
