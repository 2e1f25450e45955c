"""Images that show nothing: noise and fractals, each a pure function of its seed and its index."""
