"""Training data: samples, their sources, and mixtures of sources."""
