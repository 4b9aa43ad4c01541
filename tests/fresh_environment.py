"""An environment as `pip install WHEEL[EXTRAS]` leaves it, made offline: what else is installed here is not there."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement


def make_environment(folder: Path, wheel: Path, extras: Iterable[str] = ()) -> Path:
    """Make a virtual environment with a wheel of ours, and links to the installed packages that it requires.

    Args:
        folder: Where to.
        wheel: The wheel.
        extras: Extras of it to install.

    Returns:
        Its ``bin``.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (ours,) = importlib.metadata.distributions(name="lightning-prune", path=[str(site)])
    for distribution in required(ours, extras):
        for name in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            source, target = Path(str(distribution.locate_file(name))), site / name
            if not target.exists():
                target.symlink_to(source.resolve())
            elif target.is_symlink() and target.resolve() != source.resolve():
                raise AssertionError(f"{target} is of two distributions")
    return folder / "bin"


def required(ours: importlib.metadata.Distribution, extras: Iterable[str]) -> Iterator[importlib.metadata.Distribution]:
    """Yield the distributions that one requires with its extras, and those that these require."""
    seen: set[tuple[str, str]] = set()
    left = [(ours, extra) for extra in ("", *extras)]
    while left:
        distribution, extra = left.pop()
        if distribution is not ours and not extra:
            yield distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *requirement.extras):
                key = (requirement.name.lower().replace("_", "-"), wanted)
                if key not in seen:
                    seen.add(key)
                    left.append((importlib.metadata.distribution(requirement.name), wanted))
