"""Similarity in training: a loss that makes pairs alike, and watching it grow."""
