"""The contract of a method, and of a tracker, as tests: derive a class, say how to make yours. Needs pytest."""

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Expected pytest for `lightning_prune.testing`, but it is not installed. Run "
        "`pip install 'lightning-prune[testing]'`."
    ) from error

pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("method", "processes", "simulation", "task", "tracker"))
)

from lightning_prune.testing.method import MethodContract  # noqa: E402  (their asserts are to say what differs)
from lightning_prune.testing.tracker import TrackerContract  # noqa: E402

__all__ = ["MethodContract", "TrackerContract"]
