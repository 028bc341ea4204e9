"""Readers of annotation files on the folder layouts people have: plain records, with pictures and masks on demand."""
