"""How good answers are: the field's metrics, exact and without a model."""
