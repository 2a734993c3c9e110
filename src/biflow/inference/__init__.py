"""Uses of a trained flow: likelihood, classification, probing and editing."""
