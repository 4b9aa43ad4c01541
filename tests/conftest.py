"""Settings of every test."""

from __future__ import annotations

import atexit
import gc
import logging
import os
from functools import cache

import pytest
from hypothesis import settings

collect_ignore = ["emulated_device.py"]  # doctests are looked for in every module, and this one registers a backend

# The same examples in every run: what is green here is green elsewhere. No deadline: machines are busy.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

os.environ.pop("PL_GLOBAL_SEED", None)  # of whoever starts the tests
NAMES = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_prune")
LEVELS = {}


def pytest_configure(config):
    """Prepare what runs tests; a process that only hands them out need not import Lightning, for seconds."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import lightning.fabric.utilities.registry as registry
    import lightning.pytorch  # noqa: F401  (which sets the levels of its loggers)
    import torch
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

    # Lightning's own advice about worker counts, small epochs, missing loggers: not about what a test checks.
    config.addinivalue_line("filterwarnings", "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
    LEVELS.update({logging.getLogger(name): logging.getLogger(name).level for name in NAMES})
    torch.set_num_threads(1)  # two workers on few cores: OpenMP's barriers would cost more than the arithmetic
    if not torch.cuda.device_count():  # else each checkpoint loads the driver's library again, to be told the same
        torch.cuda.device_count = lambda: 0
    # Each Trainer asks what every installed package offers it: a tenth of a small run.
    registry.entry_points = cache(registry.entry_points)
    _ResultMetric.to = stay(_ResultMetric.to)


def stay(to):
    """Make what moves a logged value to a device do nothing where it is there: walking through it takes longest."""
    import torch

    def move(metric, device, **kwargs):
        there = metric.is_tensor and metric.value.device == torch.device(device)
        return metric if there else to(metric, device, **kwargs)

    return move


LONGEST = [
    "tests/test_site.py",
    "tests/examples/test_tables.py",
    "tests/compare/test_compare.py",
    "tests/test_contract.py",
    "tests/test_package.py",
    "tests/test_emulated_device.py",
    "tests/examples/",
    "tests/test_house.py",
    "tests/test_benchmarks.py",
]
"""Parts of the suite that take long; they begin with a longer one than they end with."""


def pytest_collection_modifyitems(items):
    """The longest first: a worker that begins one of them last would go on alone."""

    def place(item):
        return next((i for i, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)


def pytest_collection_finish():
    """What the imports made is not searched for garbage each time, the end's included: half a second a search."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # some extensions tell of what they think is leaked


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """A seed in the environment and the levels of loggers are not the next test's, nor of its module's fixtures."""
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
    for logger, level in LEVELS.items():
        logger.setLevel(level)
