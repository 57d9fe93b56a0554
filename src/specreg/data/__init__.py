"""Images as uint8 arrays in memory, mixtures of Gaussians, and batches drawn from them."""
