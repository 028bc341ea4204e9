"""Inputs of the model from media and text, and text from its tokens; everything about pixels and prompts is here."""
