"""What a trained flow is used for: likelihood, classification, probing, editing."""
