"""Cost estimates of a run from its config: parameters, FLOPs, memory and hours."""
