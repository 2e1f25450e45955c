"""The whole way: other commands, one after the other, in the folders of one run."""
