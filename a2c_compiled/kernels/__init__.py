"""Device code alone: no shape checks, no autograd. One module a backend."""
