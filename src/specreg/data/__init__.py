"""Images as uint8 arrays in memory, and seeded, resumable streams of batches drawn from them."""
