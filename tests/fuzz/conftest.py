"""How many examples: few, and the same each time; or with `EPOLLARD_FUZZ=N` N for each property, different each time."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("EPOLLARD_FUZZ", "0"))

# Most of the time is spent on generating examples, and a busy machine makes that slow: neither is a failure.
settings.register_profile(
    "brief", max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile(
    "long", max_examples=EXAMPLES or 1, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("long" if EXAMPLES else "brief")
