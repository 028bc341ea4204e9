"""Reading and writing weights: files, tensor names of both layouts, and strict loading."""
