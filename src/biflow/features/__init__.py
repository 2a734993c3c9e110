"""Frozen networks: encoders, perceptual distances and metric networks."""
