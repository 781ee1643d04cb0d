"""Eager, compiled and exported against each other and against the libraries that users come from.

Installed as ``a2c_compiled.benchmarks``; needs the extras ``export``, ``train`` and, for the peers, ``peers``.

A subject is a module of ``subjects`` with a function ``cases(plan)``, listed in ``run.SUBJECTS``; ``bench_training`` and ``bench_presets``
are commands of their own. A case is one question at one shape, with the
answer expected and the contenders that answer it. ``harness.compare`` refuses a wrong answer and times the right ones in turn.
"""
