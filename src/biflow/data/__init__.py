"""Data sets, and everything random that is done to a batch."""
