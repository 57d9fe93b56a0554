"""Tables, pictures and a page from records: what comparisons and sweeps leave, and what ``specreg report`` writes."""
