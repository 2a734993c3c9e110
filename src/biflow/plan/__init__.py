"""What a run will cost, worked out from its config alone: parameters, operations, memory, hours."""
