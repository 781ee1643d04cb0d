"""The one table of shapes, (environments, steps)."""

ESTIMATOR_SHAPES = ((8, 5), (16, 128), (64, 128), (256, 128), (4096, 32), (16, 2048))
UPDATE_SHAPES = ((8, 5), (64, 128), (256, 128))
