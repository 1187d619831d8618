"""Options of JAX's compiler for the tests, which compile hundreds of small programs for one run each. Imported by all.

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

# XLA ends the process at a flag that it does not know: only for the versions that were tried. The last is gone in 0.12.
VERSION = jaxlib.version.__version_info__
if (0, 9, 1) <= VERSION <= (0, 12, 0, 1):
    FASTER = FASTER if VERSION < (0, 11) else FASTER[:2]
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([given, *(flag for flag in FASTER if flag.partition("=")[0] not in given)])
