"""The composition root: configurations become objects, objects become runs and comparisons."""
