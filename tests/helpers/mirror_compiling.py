"""What the compiler of JAX does for the tests: hundreds of small programs, each compiled for one run. Imported by all.

Nearly all of their time is compilation. With XLA's older emitter of fused loops, and LLVM asked for no more than it
needs, it takes a third of the time.
"""

from __future__ import annotations

import os

import jaxlib

FASTER = (
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
)

# XLA ends the process at a flag that it does not know: only for the versions that were tried.
if (0, 10) <= jaxlib.version.__version_info__ < (0, 11):
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([given, *(flag for flag in FASTER if flag.partition("=")[0] not in given)])
