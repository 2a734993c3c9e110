"""The data's way, one file per station: codec -> patches -> flow_block -> forward_flow -> reverse_model."""
