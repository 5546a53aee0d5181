"""Property tests find the same examples everywhere, so that a failure can be seen again."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "virt-forward",
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("virt-forward")
