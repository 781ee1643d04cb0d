"""The whole way once: train, export, check, deploy, learn without torch."""
