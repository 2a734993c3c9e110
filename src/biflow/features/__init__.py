"""Frozen networks that look at images."""
