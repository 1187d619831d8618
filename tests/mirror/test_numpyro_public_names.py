"""The two sides under one name each: the same names, signatures, defaults and docstring sections."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

MODULES = {
    "pyro_vd": "pyro_vd.numpyro",
    "pyro_vd.kl": "pyro_vd.numpyro.kl",
    "pyro_vd.posteriors": "pyro_vd.numpyro.posteriors",
    "pyro_vd.guides": "pyro_vd.guides.numpyro",
}

# What one side has and the other does not, with the reason.
ONLY_PYRO = {
    "CompiledSVI": "numpyro.infer.SVI compiles",
    "compile_loss": "jax.jit compiles",
    "save_sparse": "of a torch module",
    "load_sparse": "of a torch module",
    "to_csr": "layers of PyTorch",
    "index_inputs": "layers of PyTorch",
    "shrink": "takes layers of PyTorch apart",
    "kl_additive": "what a gradient keeps is the compiler's choice",
}
ONLY_NUMPYRO = {
    "keep_zeros": "masks of torch.nn.utils.prune keep them in torch: prune(masked=True)",
}
# Files whose job one side does not have.
ONLY_PYRO_FILES = {
    "__main__": "tells of both",
    "metrics": "serves both sides",
    "plots": "serves both sides",
    "buffers": "calls have no effects there",
    "reading": "reads the source of torch modules",
    "references": "nets that a program refers to: guides.numpyro.nets",
    "rollback": "calls have no effects there",
    "start": "a guide has no values there before it runs",
    "one_name": "NumPyro names a site that is met twice",
    "seeded": "there is no seed of all random numbers there",
    "late": "an optimizer gets all parameters from init there",
    "exchange": "a net is a function of its weights there",
    "held": "a net is a function of its weights there",
    "layout": "a net is a function of its weights there",
    "site_terms": "a part of elbo there",
    "fixed": "no layer of flax or equinox keeps elements fixed",
    "sites": "what a WeightGuide of Pyro is as a module",
    "loss_module": "a loss as a torch module, for torch.optim",
    "compiled": "JAX compiles by itself",
    "common": "shared by both",
    "convert": "serves both sides",
    "devices": "JAX places arrays by itself",
    "scoring": "NumPyro's ELBOs evaluate no log_prob of a weight",
    "_constants": "shared by both",
    "_pyro": "private corners of Pyro",
    "_pyro_interrupted": "private corners of Pyro",
    "_torch": "private corners of PyTorch",
}
ONLY_NUMPYRO_FILES = {
    "quantiles": "a method of NumPyro's automatic guides, not of Pyro's",
    "nets": "three libraries of nets",
    "plates": "the Pyro side has it beside BayesianModule",
    "_jax": "private corners of JAX and Quax",
    "_numpyro": "private corners of NumPyro",
    "rules": "what Quax asks for",
    "starts": "Pyro's guides look at a model by running it",
}

# What NumPyro passes in and Pyro keeps: randomness and parameters.
EXPLICIT = {"rng_key", "params", "key"}
# Names that an argument has in the host's base class.
RENAMED = {"q": "value"}
# (class, parameter): Pyro's own options of a base class, or what NumPyro's base class takes.
HOST_OPTIONS = {
    ("TraceVD_ELBO", "max_plate_nesting"),
    ("TraceVD_ELBO", "strict_enumeration_warning"),
    ("TraceVD_ELBO", "retain_graph"),
    ("deploy", "forms"),  # of a torch module; of JAX's sparse arrays
    ("prune", "masked"),  # of torch.nn.utils.prune; keep_zeros for optax
}
# Public attributes of a class that come from what its host is.
HOST_METHODS = {
    "TraceVD_ELBO": {"differentiable_loss", "loss_and_grads", "loss", "loss_with_mutable_state"},
    "BayesianModule": {
        "forward", "adapted", "weight_names", "weight_messages", "fixed", "sample_weights", "site_infer",
        "extra_repr",
    },
    "RandomWeight": {
        "pinned", "loc", "site", "default", "aval", "materialise", "scored_draw", "shape", "dim", "dtype", "T", "mT",
    },
    "Predictive": {"to"},  # another device: jax.device_put
    "ImproperLogUniform": set(), "TruncatedLogUniform": set(),
}  # fmt: skip


def public(module: str) -> set[str]:
    loaded = importlib.import_module(module)
    objects = {name: value for name, value in vars(loaded).items() if not name.startswith("_")}
    ours = {n for n, v in objects.items() if getattr(v, "__module__", "").startswith("pyro_vd") and callable(v)}
    return ours if module != "pyro_vd.kl" else {n for n in ours if objects[n].__module__ == loaded.__name__}


def pairs() -> list[tuple[str, object, object]]:
    found = {}
    for ours, theirs in MODULES.items():
        first, second = importlib.import_module(ours), importlib.import_module(theirs)
        found.update({n: (n, getattr(first, n), getattr(second, n)) for n in public(ours) if hasattr(second, n)})
    return sorted(found.values(), key=lambda pair: pair[0])


PAIRS = [pytest.param(*pair, id=pair[0]) for pair in pairs()]


def arguments(value: object, name: str) -> list[tuple]:
    """Name, kind and default of every argument that is not the host's own."""
    parameters = inspect.signature(value).parameters.values()  # type: ignore[arg-type]
    ours = [p for p in parameters if p.name not in {*EXPLICIT, "validate_args"} and (name, p.name) not in HOST_OPTIONS]
    return [
        (RENAMED.get(p.name, p.name), p.kind, p.default if not callable(p.default) else p.default.__name__)
        for p in ours
    ]


def sections(value: object) -> list[str]:
    return re.findall(r"^ *(Args|Attributes|Returns|Raises|Example|References):$", value.__doc__ or "", re.MULTILINE)


def test_there_is_something_to_compare():
    assert len(PAIRS) > 30


@pytest.mark.parametrize(("ours", "theirs"), MODULES.items())
def test_same_names(ours, theirs):
    assert public(ours) - set(ONLY_PYRO) == public(theirs) - set(ONLY_PYRO) - set(ONLY_NUMPYRO)


def test_same_files():
    def files(module: str) -> set[str]:
        return {found.name for found in pkgutil.iter_modules(importlib.import_module(module).__path__)}

    for ours, theirs in (("pyro_vd", "pyro_vd.numpyro"), ("pyro_vd.guides", "pyro_vd.guides.numpyro"),
                         ("pyro_vd.posteriors", "pyro_vd.numpyro.posteriors")):  # fmt: skip
        expected = files(ours) - set(ONLY_PYRO_FILES) - {"numpyro", "guides"}
        assert expected == files(theirs) - set(ONLY_NUMPYRO_FILES)


@pytest.mark.parametrize(("name", "ours", "theirs"), PAIRS)
def test_same_signature(name, ours, theirs):
    if name in ("RandomWeight", "LinearOp"):  # a tensor subclass there, a Quax value here; made of its operations
        return
    assert arguments(ours, name) == arguments(theirs, name)


@pytest.mark.parametrize(("name", "ours", "theirs"), PAIRS)
def test_same_docstring_sections(name, ours, theirs):
    if name == "LinearOp":
        return
    raises = {"Raises"}  # errors that only one side can meet
    assert [s for s in sections(ours) if s not in raises] == [s for s in sections(theirs) if s not in raises]
    assert not (set(sections(ours)) & raises) - set(sections(theirs))


@pytest.mark.parametrize(("name", "ours", "theirs"), [p for p in PAIRS if inspect.isclass(p.values[1])])
def test_same_methods(name, ours, theirs):
    if name == "LinearOp":  # which axes an operation sums over is asked of shapes there, and said here
        return

    def own(value: type) -> set[str]:
        return {
            attribute
            for base in value.__mro__
            if base.__module__.startswith("pyro_vd")
            for attribute in vars(base)
            if not attribute.startswith("_")
        }

    hosts = HOST_METHODS.get(name, set()) | DISTRIBUTION | GUIDE
    assert own(ours) - hosts == own(theirs) - hosts
    for attribute in sorted((own(ours) & own(theirs)) - hosts):
        first, second = (inspect.getattr_static(value, attribute) for value in (ours, theirs))
        if inspect.isfunction(first) and inspect.isfunction(second):
            assert arguments(first, name) == arguments(second, name), attribute


# How Pyro's and NumPyro's distributions, and their automatic guides, are built.
DISTRIBUTION = {
    "arg_constraints", "support", "has_rsample", "reparametrized_params", "pytree_data_fields", "pytree_aux_fields",
    "kl_to", "sum_over_units", "rsample", "sample", "expand",
    "tree_flatten", "tree_unflatten", "enumerate_support", "is_discrete", "infer_shapes",
}  # fmt: skip
GUIDE = {"see", "forward", "median", "quantiles", "sample_posterior", "project", "projection", "prototype_trace"}


def test_importing_the_numpyro_side_does_no_work():
    code = (
        "import jax, sys; import pyro_vd.numpyro, pyro_vd.guides.numpyro; "
        "assert not jax._src.xla_bridge._backends, 'a device was started'; "
        "print(sorted(m for m in sys.modules if m in ('flax', 'safetensors')))"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
