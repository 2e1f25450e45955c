"""Attempts at breaking the package: how they are made, run in forked processes, and judged. See `tools/campaign.py`."""
