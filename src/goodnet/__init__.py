"""goodnet."""
