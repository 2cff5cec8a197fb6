"""How long to look: briefly and the same each time, or `EPOLLARD_FUZZ=N` examples of each property, others each time."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("EPOLLARD_FUZZ", "0"))

# Generating takes most of the time, and a busy machine makes it look slow: neither says anything of what is tested.
settings.register_profile(
    "brief", max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile(
    "long", max_examples=EXAMPLES or 1, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("long" if EXAMPLES else "brief")
