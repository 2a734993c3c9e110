"""Training objectives, the training loop, and the stages of a run."""
