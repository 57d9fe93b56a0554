"""The autopsy of anybody's model: the spectra of the weights in its checkpoints, without the model's code."""
