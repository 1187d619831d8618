"""mixed_guide: one guide made of several, each for a part of the sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import AutoGuideList
from pyro.infer.autoguide.guides import AutoCallable, AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vd._pyro import in_handlers_of, innermost
from pyro_vd.arguments import check_finite_state, check_model
from pyro_vd.common.guide_options import check_parts
from pyro_vd.guides.base import WeightGuide, init_to_net_value
from pyro_vd.guides.sites import say_untrained
from pyro_vd.late import MadeLate
from pyro_vd.posteriors import WeightPosterior
from pyro_vd.posteriors.sites import base_distribution
from pyro_vd.priors import ImproperLogUniform


def mixed_guide(model: Callable, *guides: AutoGuide) -> MixedGuide:
    """A guide of several families, each on the sites that its ``where`` names.

    A Pyro ``AutoGuideList`` with the guides appended, which does not run the model itself and opens no plate but those
    of the sites that its parts cover.

    Args:
        model: the Pyro model.
        *guides: guides with ``where=``, no two on the same site, any other automatic guide of a part, or a function
            that samples a part.

    Example:
        >>> import torch, pyro_vd as vd
        >>> from pyro_vd.guides import AutoSparseVD, AutoVariationalDropout
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
        >>> first = AutoVariationalDropout(bnn, correlated=True, where="net.0.weight")
        >>> guide = mixed_guide(bnn, first, AutoSparseVD(bnn, where="net.1.weight"))
        >>> sorted(guide(torch.ones(1, 3)))
        ['net.0.weight', 'net.1.weight']
        >>> guide
        mixed_guide(AutoVariationalDropout(net.0.weight: (4, 3)), AutoSparseVD(net.1.weight: (2, 4)))

    See also:
        :class:`pyro_vd.guides.AutoSparseVD`, :class:`pyro_vd.guides.AutoMeanField`.
    """
    check_parts(model, guides, AutoGuide)
    check_model(model)
    mixed = MixedGuide(InitMessenger(init_to_net_value)(model))
    for guide in guides:
        mixed.append(guide)
    return mixed


class MixedGuide(AutoGuideList):
    """What :func:`mixed_guide` returns."""

    _late: MadeLate | None = None  # as of other guides: parameters made by a guide of Pyro

    def __init__(self, model: Callable):
        super().__init__(model)
        self.register_load_state_dict_pre_hook(check_finite_state)
        self._pyro_name = "AutoGuideList"  # the names of parameters in Pyro's store are those of a plain list

    def append(self, part: Any) -> None:
        """Add a guide.

        Raises:
            ValueError: it covers a weight that another part covers; it is a part of a mixed guide already.
        """
        if getattr(part, "master", None) is not None:
            raise ValueError(
                f"mixed_guide: expected a guide of its own, got {type(part).__name__}, which is a part of another "
                "mixed guide; make one for each"
            )
        own = set(_weights(part)) & {site for other in self for site in _weights(other)}
        if own:
            raise ValueError(
                f"mixed_guide: expected no two guides on one site, got two on {sorted(own)}; leave them out of one by "
                "where="
            )
        super().append(part)

    @property
    def weight_sites(self) -> tuple[str, ...]:
        """Names of the sites that are random weights, part by part."""
        return tuple(self.posteriors())

    def posteriors(self) -> dict[str, WeightPosterior]:
        """The distribution of every weight site of the parts that are guides of this library."""
        parts: Any = [part for part in self if _weights(part)]
        return {site: posterior for part in parts for site, posterior in part.posteriors().items()}

    def log_alpha(self, site: str) -> Tensor:
        """Natural log of the noise ratio at ``site``, see :meth:`pyro_vd.guides.base.WeightGuide.log_alpha`."""
        part: Any
        for part in self:
            if site in _weights(part):
                return part.log_alpha(site)
        raise ValueError(f"site: expected one of the weight sites {list(self.weight_sites)}, got {site!r}")

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        self.prototype_trace = Trace()  # an empty one: each part runs the model by itself

    def _check_prototype(self, part_trace: Any) -> None:
        pass

    def _create_plates(self, *args: Any, **kwargs: Any) -> Any:
        say_untrained(self)
        self._see(args, kwargs)
        _check_one_guide_each(self)
        return super()._create_plates(*args, **kwargs)

    def _see(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Have every part see the model, and note the plates of their sites."""
        self._prototype_frames = {}
        part: Any
        for part in self:
            if isinstance(part, WeightGuide):
                part.see(*args, **kwargs)
            elif isinstance(part, MixedGuide):
                part._see(args, kwargs)
            elif part.prototype_trace is None and not isinstance(part, AutoCallable):  # which opens its own
                before = list(self.parameters())
                own, part._model = part._model, (_with_starts(part.model),)
                try:
                    part._setup_prototype(*args, **kwargs)
                finally:
                    part._model = own
                if before:
                    self._late = MadeLate(dict(self.named_parameters()), before)
            self._prototype_frames.update(part._prototype_frames)

    __getstate__ = WeightGuide.__getstate__
    __deepcopy__ = WeightGuide.__deepcopy__

    def __repr__(self) -> str:
        return f"mixed_guide({', '.join(map(repr, self))})"


def _sites(part: Any) -> list[str]:
    """Names of the latent sites that a part has been seen to cover."""
    if isinstance(part, AutoGuideList):
        return [site for inner in part for site in _sites(inner)]
    if isinstance(part, WeightGuide):
        return list(part._prototypes)
    return [] if part.prototype_trace is None else [name for name, _ in part.prototype_trace.iter_stochastic_nodes()]


def _check_one_guide_each(guide: MixedGuide) -> None:
    sites = _sites(guide)
    if len(set(sites)) < len(sites):  # looked at in every call
        twice = list(dict.fromkeys(site for site in sites if sites.count(site) > 1))
        raise ValueError(
            f"mixed_guide: expected one guide for each site, got two or more for {twice}; give guides of this library "
            f"where=, and others poutine.block(model, hide={twice})"
        )


class _Starts(Messenger):
    """Gives the weights under an improper prior, which has no draws, their start."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and isinstance(base_distribution(msg["fn"]), ImproperLogUniform):
            msg["value"], msg["done"] = init_to_net_value(msg), True


def _with_starts(model: Callable) -> Callable:
    """The model, which can run before its guide: inside of handlers that hide weights from a part of the guide."""
    return in_handlers_of(model, _Starts()(innermost(model)))


def _weights(part: Any) -> tuple[str, ...]:
    if isinstance(part, MixedGuide):
        return tuple(site for inner in part for site in _weights(inner))
    if not isinstance(part, WeightGuide):
        return ()
    return tuple(site for site in part._prototypes if site not in part._others)
