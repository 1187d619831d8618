"""Why a step could not be compiled, in the words of its user."""

from __future__ import annotations

from traceback import walk_tb

from pyro.util import warn_if_nan

from pyro_vd.compiled.user_code import users_line

_DEPENDS_ON_DATA = ("DataDependent", "UnbackedSymNode", "_local_scalar_dense", "memo disaster")


class Unrecordable(Exception):
    """An operation that cannot be recorded. Pyro adds the shapes of a trace to a ValueError, not to this."""


def reason_of(error: BaseException) -> str:
    """What stopped a recording or a compiler, and the line of the user's program where it did."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for one in reversed(chain):  # the first to be raised; others may have taken it for something else
        name, text, line = type(one).__name__, str(one).strip(), users_line(one) or users_line(error)
        if _packs_sequences(one) or "_packed_sequence" in text or "PackedSequence" in text:
            return (
                "it packs sequences (torch.nn.utils.rnn), whose shapes depend on the lengths, which are data"
                f"{line} ({name}); give the recurrent layer the padded batch and mask its output"
            )
        if isinstance(one, Unrecordable):
            return f"{text}{line}"
        if any(frame.f_code is warn_if_nan.__code__ for frame, _ in walk_tb(one.__traceback__)):
            return (
                "an ELBO of Pyro reads its loss, to warn of NaN (pyro.util.warn_if_nan); write "
                "pyro_vd.TraceVD_ELBO(analytic_only=False), which has the same gradients in expectation"
            )
        if any(part in name or part in text for part in _DEPENDS_ON_DATA):
            return (
                f"what it does depends on the value of a tensor (if, float(), .item(), a shape){line} ({name}: "
                f"{text.splitlines()[0][:200] if text else 'no message'}); write it with torch.where, or give the step "
                "the number as an argument"
            )
    text = str(error).partition("Trace Shapes:")[0].strip()  # Pyro's table, of the whole program
    return f"{type(error).__name__}: {text}{users_line(error)}"


def _packs_sequences(error: BaseException) -> bool:
    """Whether an error came from ``torch.nn.utils.rnn``, or from a recurrent layer that was given its output."""
    for frame, _ in walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__")
        if name == "torch.nn.utils.rnn":
            return True
        if name == "torch.nn.modules.rnn" and frame.f_locals.get("batch_sizes") is not None:
            return True
    return False
