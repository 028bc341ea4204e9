"""How the model learns: losses, what is trained, the trainer, and recipes as functions."""
