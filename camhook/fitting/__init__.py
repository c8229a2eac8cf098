"""A probe on frozen features: what a fit remembers, how it is solved, how far it may be believed."""
