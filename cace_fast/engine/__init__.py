"""Backend choice, precision and the forward schedule; the only place with caches."""
