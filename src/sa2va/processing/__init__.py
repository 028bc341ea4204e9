"""The only place that knows pixels and prompts: media in, model inputs out, and the model's tokens back to text."""
