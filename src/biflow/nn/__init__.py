"""Transformer building blocks, independent of the flow."""
