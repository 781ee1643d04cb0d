"""The command ``a2c-compiled demo``: train, export, check, act and learn without torch, measure, report."""
