"""``python -m pyro_vd``: what it prints, and that a wrong number fails it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pyro
import pytest
import torch

import pyro_vd as vd
from pyro_vd import __main__ as program


def test_it_prints_versions_and_passes(capsys, monkeypatch):
    monkeypatch.setattr(program, "check_training", lambda: str(pyro.param("ours", torch.ones(()))))
    pyro.param("mine", torch.ones(()))
    assert program.main([]) == 0
    printed = capsys.readouterr().out
    assert f"torch        {importlib.metadata.version('torch')}" in printed
    assert printed.count("passed in") == 2 and "devices      cpu" in printed and "compiler " in printed
    assert list(pyro.get_param_store().keys()) == ["mine"]


def test_a_wrong_kl_fails_it_by_name(capsys, monkeypatch):
    right = vd.kl.kl_log_uniform
    monkeypatch.setattr(vd.kl, "kl_log_uniform", lambda *args, **kwargs: right(*args, **kwargs) + 1e-5)
    monkeypatch.setattr(program, "check_training", lambda: "not looked at")
    assert program.main([]) == 1
    assert "KL           FAILED" in capsys.readouterr().out


def test_without_a_compiler_it_says_what_that_means(monkeypatch):
    monkeypatch.setattr(program.shutil, "which", lambda name: None)
    assert any("none found: steps of CompiledSVI stay eager" in line for line in program.report())


@pytest.mark.slow
def test_as_a_command_with_a_compiled_step():
    done = subprocess.run([sys.executable, "-m", "pyro_vd", "--compile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed in") == 3 and not done.stderr
