"""Measuring what was trained."""
