"""Fixtures that all tests share. A test never touches the clone's own data/: it has a home of its own."""

from __future__ import annotations

import gc
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
#: Real rating logs; tests marked `real` are skipped where there are none.
REAL_DATA = Path(os.environ.get("DTI_REAL_DATA") or ROOT.parent / "shared" / "data")

# The same examples every time, so that a failure is everybody's; HYPOTHESIS_PROFILE=random draws others.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure() -> None:
    # A shell that starts pytest in the background may ignore these, and so would every server that a test stops.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)  # before `-m gpu_smoke` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if "gpu" in item.keywords]
    for item in {item.nodeid.partition("[")[0]: item for item in on_gpu}.values():  # the last case of each
        item.add_marker("gpu_smoke")
    no_data = pytest.mark.skip(reason=f"no real rating logs at {REAL_DATA} (set DTI_REAL_DATA)")
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    no_ray = pytest.mark.skip(reason="Ray is not installed: pip install dti-pipeline[ray]")
    no_browser = pytest.mark.skip(reason="no chromium and chromedriver on PATH (Debian: chromium, chromium-driver)")
    for item in items:
        if "real" in item.keywords and not REAL_DATA.is_dir():
            item.add_marker(no_data)
        if "gpu" in item.keywords and not _cuda():
            item.add_marker(no_gpu)
        if "ray" in item.keywords and importlib.util.find_spec("ray") is None:
            item.add_marker(no_ray)
        if "browser" in item.keywords and not (CHROMIUM and DRIVER):
            item.add_marker(no_browser)


def pytest_collection_finish() -> None:
    """Whole libraries are loaded by now and stay: looking through them takes the collector half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else some libraries take what is left at the end for leaks


def _cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _graphs_of_its_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """What one test compiles on a GPU does not count against the next one's limit."""
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
