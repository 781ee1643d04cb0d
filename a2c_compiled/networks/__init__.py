"""Networks for the observation and action spaces of an environment, and normalisation of observations. Needs gymnasium."""
