"""Sharing models: the Hugging Face hub, model cards, and ml-tarflow checkpoints."""
