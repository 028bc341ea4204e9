"""What the model learns from: samples, the sources that make them, and the mixtures that serve them."""
