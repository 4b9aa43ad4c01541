from __future__ import annotations

from tests.scoring.conftest import golden

__all__ = ["golden"]
