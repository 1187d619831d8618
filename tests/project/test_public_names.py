"""What the package exports: the names of its contract, their docstrings, and the words of their arguments."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys

import pytest

import pyro_vd
import pyro_vd.guides

# Names that programs outside this repository use.
CONTRACT = {
    "pyro_vd": [
        "BayesianModule",
        "DropoutNormal",
        "ImproperLogUniform",
        "RandomWeight",
        "TraceVD_ELBO",
        "TruncatedLogUniform",
        "data_plate",
        "lrt",
        "posterior_predictive",
        "prune",
        "sparsity_report",
    ],
    "pyro_vd.kl": ["kl_ard", "kl_log_uniform"],
    "pyro_vd.guides": ["AutoMeanField", "AutoSparseVD", "AutoVariationalDropout"],
}

# First parameters, in order, of what is called with positional arguments.
SIGNATURES = {
    "kl.kl_log_uniform": ("log_alpha", "method"),
    "kl.kl_ard": ("log_alpha",),
    "TruncatedLogUniform": ("low", "high"),
    "DropoutNormal": ("loc", "log_alpha", "log_sigma2", "kl"),
    "TraceVD_ELBO": ("estimator", "num_particles", "kl_weight"),
    "BayesianModule": ("net", "prior", "name", "where"),
    "data_plate": ("dataset_size", "batch_size", "name"),
    "posterior_predictive": ("model", "guide"),
    "sparsity_report": ("guide", "log_alpha_threshold"),
}

# One word for one thing: the mean is loc, the standard deviation scale, the log variance log_sigma2, ...
FORBIDDEN = {
    *("mu", "theta", "mean", "sigma", "std", "stddev", "rho", "log_var", "logvar", "log_a", "dropout", "p"),
    *("gamma", "act", "out", "penalty", "reg", "elbo", "threshold", "tau", "compression", "beta", "n_samples"),
}


def modules() -> list:
    names = [module.name for module in pkgutil.walk_packages(pyro_vd.__path__, "pyro_vd.")]
    names += [f"pyro_vd.guides.{module.name}" for module in pkgutil.iter_modules(pyro_vd.guides.__path__)]
    # The NumPyro side is an extra.
    return [importlib.import_module(name) for name in ["pyro_vd", *sorted(set(names))] if ".numpyro" not in name]


def public_objects() -> list[tuple[str, object]]:
    """Public functions and classes that the package defines, by where they are defined."""
    found = {}
    for module in modules():
        for name, value in vars(module).items():
            is_ours = getattr(value, "__module__", "").startswith("pyro_vd")
            if not name.startswith("_") and is_ours and (inspect.isclass(value) or inspect.isfunction(value)):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return sorted(found.items())


OBJECTS = public_objects()
EXPORTED = {
    id(value) for module in ("pyro_vd", "pyro_vd.kl", "pyro_vd.guides") for value in vars(sys.modules[module]).values()
}


def test_there_is_something_to_test():
    assert len(OBJECTS) > 30 and len(modules()) > 12


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in CONTRACT.items() for name in names])
def test_names_of_the_contract(module, name):
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("name", "parameters"), SIGNATURES.items())
def test_argument_order_of_the_contract(name, parameters):
    value = pyro_vd
    for part in name.split("."):
        value = getattr(value, part)
    assert tuple(inspect.signature(value).parameters)[: len(parameters)] == parameters


def test_defaults_of_the_contract():
    def default(function, name):
        return inspect.signature(function).parameters[name].default

    assert default(pyro_vd.kl.kl_log_uniform, "method") == "sigmoid"
    assert default(pyro_vd.DropoutNormal, "kl") == "sigmoid"
    assert default(pyro_vd.TraceVD_ELBO, "estimator") == "local"
    assert default(pyro_vd.TraceVD_ELBO, "kl_weight") == 1.0
    assert default(pyro_vd.posterior_predictive, "mode") == "weights"
    assert default(pyro_vd.sparsity_report, "log_alpha_threshold") == 3.0
    assert default(pyro_vd.BayesianModule, "name") == "net"
    assert default(pyro_vd.guides.AutoSparseVD, "init_log_sigma2") == -10


def test_importing_the_package_does_not_import_jax_and_does_no_work():
    code = (
        "import sys, torch, pyro; torch.manual_seed(0); before = torch.get_rng_state(); "
        "import pyro_vd, pyro_vd.guides; "
        "assert torch.equal(before, torch.get_rng_state()); assert not list(pyro.get_param_store().keys()); "
        "extras = ('jax', 'jaxlib', 'numpyro', 'quax', 'flax', 'lightning'); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in extras))"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize(("name", "value"), OBJECTS)
def test_every_public_object_has_a_docstring(name, value):
    assert (value.__doc__ or "").strip() and not (value.__doc__ or "").startswith(value.__name__ + "(")


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, v in OBJECTS if id(v) in EXPORTED])
def test_exported_objects_document_every_argument(name, value):
    if inspect.isclass(value) and issubclass(value, Exception):
        return
    documented = value.__doc__ or ""
    if value is not pyro_vd.RandomWeight and not documented.startswith("As :func:"):  # it is made by handlers
        for parameter in inspect.signature(value).parameters.values():
            if parameter.name not in ("validate_args", "self"):
                assert parameter.name in documented, parameter.name


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, v in OBJECTS if id(v) in EXPORTED])
def test_arguments_have_the_library_s_words(name, value):
    functions = [value]
    if inspect.isclass(value):
        functions += [f for n, f in vars(value).items() if inspect.isfunction(f) and not n.startswith("_")]
    for function in functions:
        assert not FORBIDDEN & set(inspect.signature(function).parameters), function


def test_modules_have_a_docstring_and_no_star_export():
    for module in modules():
        assert module.__doc__, module.__name__


def test_dir_shows_public_names_only():
    shown = set(dir(pyro_vd))
    assert {"BayesianModule", "TraceVD_ELBO", "kl", "guides", "__version__"} <= shown
    assert not [name for name in shown if name.startswith("_") and name != "__version__"]
    inner = {"module", "handlers", "elbo", "weights", "compiled", "common", "estimators", "sys", "annotations"}
    assert not shown & inner


def test_the_version_is_that_of_the_installed_package():
    assert pyro_vd.__version__ == importlib.metadata.version("pyro_vd")
