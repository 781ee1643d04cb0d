"""Benchmarks that compare the eager, compiled and exported modes of this package with each other and with peer (other) libraries.

Installed as ``a2c_compiled.benchmarks``. Requires the extras ``export`` and ``train``, and ``peers`` for the peer libraries.

A subject is a module of ``subjects`` with a function ``cases(plan)``. ``run.SUBJECTS`` lists the subjects of ``a2c-compiled bench``.
``bench_training`` and ``bench_presets`` are separate commands.

A case is one computation at one shape. A case holds the expected result and the contenders (implementations) that compute it.
``harness.compare`` rejects contenders with a wrong result and times the others in turn.
"""
