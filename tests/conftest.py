"""Fixtures every kind of test shares. Tests never touch the clone's own data/: each has a home of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dti_pipeline.paths import Paths
from tests.browser import CHROMIUM, DRIVER

ROOT = Path(__file__).resolve().parent.parent
#: Real rating logs, where somebody has put them; no test needs them to pass, those marked `real` are skipped without.
REAL_DATA = Path(os.environ.get("DTI_REAL_DATA") or ROOT.parent / "shared" / "data")

# The same examples every time: a test that fails for one person fails for all. HYPOTHESIS_PROFILE=random looks further.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure() -> None:
    # What starts pytest in the background may have it ignore these, and so would every server that a test stops.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_data = pytest.mark.skip(reason=f"no real rating logs at {REAL_DATA} (set DTI_REAL_DATA)")
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    no_browser = pytest.mark.skip(reason="no chromium and chromedriver on PATH (Debian: chromium, chromium-driver)")
    for item in items:
        if "real" in item.keywords and not REAL_DATA.is_dir():
            item.add_marker(no_data)
        if "gpu" in item.keywords and not _cuda():
            item.add_marker(no_gpu)
        if "browser" in item.keywords and not (CHROMIUM and DRIVER):
            item.add_marker(no_browser)


def _cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _graphs_of_its_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test on a GPU has compiled counts against the limit of no other test."""
    yield
    if "gpu" in request.keywords and _cuda():
        import torch

        torch.compiler.reset()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """An empty project home, also in the environment."""
    monkeypatch.setenv("DTI_HOME", str(tmp_path))
    return Paths(tmp_path)


@pytest.fixture(scope="session")
def real_data() -> Path:
    return REAL_DATA
