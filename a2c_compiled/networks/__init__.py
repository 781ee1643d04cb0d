"""Networks for the spaces of environments, and the running statistics that normalise observations. Needs gymnasium."""
