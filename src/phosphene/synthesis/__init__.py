"""Where images come from when there are none."""
