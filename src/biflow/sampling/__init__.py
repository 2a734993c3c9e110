"""Noise -> image: free functions that share one result type."""
