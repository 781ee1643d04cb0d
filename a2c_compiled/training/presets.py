"""Options that are tuned for an environment; what they reach is in ``benchmarks/results/presets.md``."""

from typing import Any, Dict

PRESETS: Dict[str, Dict[str, Any]] = {
    "cartpole": {},
    "pendulum": {
        "env": "Pendulum-v1",
    },
}
