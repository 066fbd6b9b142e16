"""Suspected label errors: what all other samples, as the network sees them, say of each label."""
