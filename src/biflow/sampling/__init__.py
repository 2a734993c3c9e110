"""Samplers: noise -> patches, as functions with one result type."""
