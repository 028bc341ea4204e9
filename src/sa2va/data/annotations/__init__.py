"""Readers of annotation files in common folder layouts: plain records, with images and masks on demand."""
