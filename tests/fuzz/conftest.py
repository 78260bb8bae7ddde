"""How many cases: a sample that is the same every time, or 10,000 new ones for each parser (`make fuzz`)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
"""Time is watched by `tests.fuzz.damage.within`, which knows a hang from a busy machine."""

settings.register_profile("sample", max_examples=50, derandomize=True, **QUIET)
settings.register_profile("fuzz", max_examples=int(os.environ.get("CDRL_FUZZ_CASES", "10000")), **QUIET)
settings.load_profile(os.environ.get("CDRL_FUZZ", "sample"))
