"""The networks, in the order of the data: codec -> patches -> flow_block -> forward_flow -> reverse_model."""
