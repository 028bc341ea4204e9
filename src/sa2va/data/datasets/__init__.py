"""Annotation files as samples, one format per module."""
