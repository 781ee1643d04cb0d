"""The contenders (implementations to compare): peer libraries, hand-written baselines, and the modes of this package."""
