"""Images as uint8 arrays in memory, mixtures of Gaussians, and seeded, resumable streams of batches drawn from them."""
