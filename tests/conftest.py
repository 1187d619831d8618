"""Every test starts from a fixed seed, an empty parameter store, and with validation on."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and tests that run side by side

import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# The tests of the NumPyro side compile hundreds of small programs and run each once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture(autouse=True)
def _fresh_pyro():
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    pyro.enable_validation(True)
    pyro.clear_param_store()  # for the doctests, which run after


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("slow: left out unless asked for, pytest -m slow", "gpu: needs a CUDA device"):
        config.addinivalue_line("markers", marker)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture
def x64():
    """JAX in double precision, and no silent promotion of one type to another."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield
