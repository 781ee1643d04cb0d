"""The contenders: peer libraries, hand-written baselines, and the modes of this package."""
