"""Masks and segments: frozen data in numpy, without tensors or a model."""
