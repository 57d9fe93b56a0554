"""Adversarial training: the two steps, the state, the loop."""
