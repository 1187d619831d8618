"""One name, one weight: what the trace of a run has already under the name of a weight of a net."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_vd._pyro import node_of_trace


def value_so_far(owner: str, site: str, parameter: nn.Parameter, node: Any) -> Any:
    """The value of a weight from an earlier call of its net in this run, which has the same weights.

    Args:
        owner: name of the BayesianModule.
        site: of the weight.
        parameter: that the net has for it.
        node: what has the name of the site in the trace of this run.

    Raises:
        ValueError: that is another site.
    """
    if node["type"] == "sample" and node.get("net_parameter") is parameter:
        return node["value"]
    raise _taken(owner, f"site {site!r}", node)


def check_parameter(owner: str, name: str, parameter: nn.Parameter) -> None:
    """ValueError where a run has another parameter, or a weight, under the name of a deterministic parameter.

    Args:
        owner, parameter: as in :func:`value_so_far`.
        name: of the parameter, with that of its owner.
    """
    node = node_of_trace(name, parameters=True)
    if node is None:
        return
    own = getattr(node["value"], "unconstrained", lambda: parameter)()
    if own is not parameter or "net_parameter" in node:
        raise _taken(owner, f"parameter {name!r}", node)


def _taken(owner: str, what: str, node: Any) -> ValueError:
    other = node.get("net_name") or node["infer"].get("net_name")
    if other is None:
        got = f"a pyro.{node['type']} of the model and a weight of the BayesianModule {owner!r}"
    elif other == owner:
        got = f"two BayesianModules named {owner!r}"
    else:
        got = f"one in each of the BayesianModules {other!r} and {owner!r}"
    return ValueError(
        f"{what}: expected every BayesianModule of a model to have a name of its own, got {got}; write "
        "BayesianModule(..., name=...) for one of them, not the name of another with a layer behind it"
    )
