"""Metrics of samples, cost of sampling, and the evaluation report."""
