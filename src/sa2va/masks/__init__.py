"""Masks and the objects they belong to: plain frozen data in numpy, no tensors and no model."""
