"""Against what: peers, hand-written baselines, and the modes of this package."""
