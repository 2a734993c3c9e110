"""The quickstart on handwritten digits: train, sample, evaluate, report."""
