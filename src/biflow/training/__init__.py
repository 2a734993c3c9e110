"""Objectives, the loop that minimises them, and the stages of a run."""
