"""``import pyro_vd`` leaves the compiler alone, also where it could not be imported."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys, torch, pyro
before = set(sys.modules)
import pyro_vd, pyro_vd.guides
new = set(sys.modules) - before
compilers = "torch._inductor", "torch._dynamo", "sympy", "torch.fx.experimental.symbolic_shapes"
print(sorted(name for name in new if name.startswith(compilers)))
import functools
adam, elbo = functools.partial(torch.optim.Adam, lr=0.1), pyro_vd.TraceVD_ELBO()
svi = pyro_vd.CompiledSVI(lambda: None, lambda: None, adam, elbo)
print(sorted(name for name in set(sys.modules) - before if name.startswith(compilers)))
"""


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_nothing_of_the_compiler_is_imported():
    assert run(PROGRAM) == ["[]", "[]"]


def test_it_is_imported_where_the_cache_folder_of_inductor_cannot_be_made():
    assert run(PROGRAM, TORCHINDUCTOR_CACHE_DIR="/proc/nope") == ["[]", "[]"]
