"""Transformer parts; nothing in here knows what a flow is."""
