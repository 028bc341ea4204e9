"""Training: losses, trainable parts, the trainer, and recipes as functions."""
