"""Judge generated images: images and a sampler in, a dataclass of metrics out."""
