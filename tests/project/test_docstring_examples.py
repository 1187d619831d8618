"""Every public name shows how it is used, by a doctest or the name of one that has it, and names what is near it."""

from __future__ import annotations

import inspect
import pydoc
import re

import pytest

import pyro_vd as vd
from pyro_vd import guides


def shown(module, guides_module) -> dict[str, object]:
    """What a user reaches by a name: the exports, the guides, the KLs and the functions of training."""
    found = {name: getattr(module, name) for name in dir(module) if not inspect.ismodule(getattr(module, name))}
    found |= {name: v for name, v in vars(guides_module).items() if name.startswith("Auto") or name == "mixed_guide"}
    found |= {name: getattr(module.kl, name) for name in ("kl_ard", "kl_log_uniform")}
    found |= {name: value for name, value in vars(module.training).items() if inspect.isfunction(value)}
    return {name: value for name, value in found.items() if callable(value) and not name.startswith("_")}


def check(names: dict[str, object]) -> None:
    assert len(names) > 45
    for name, value in names.items():
        text = value.__doc__ or ""
        other = re.search(r"Example:\s+See :\w+:`(?:[\w.]+\.)?(\w+)`", text)
        assert ">>>" in text or (other and ">>>" in (names[other[1]].__doc__ or "")), name
        assert near(text), name


def near(text: str) -> list[str]:
    """The names under "See also", the last section; each leads to an object of this package."""
    _, _, section = text.partition("See also:")
    names = re.findall(r":\w+:`(pyro_vd[.\w]+)`", section)
    assert not re.sub(r":\w+:`[.\w]+`|[\s,.]", "", section), f"more than names under See also: {section}"
    for name in names:
        pydoc.locate(name) or pytest.fail(f"See also: no object {name}")
    return names


def test_every_public_name_has_an_example():
    check(shown(vd, guides))


def test_every_public_name_of_the_numpyro_side_has_an_example():
    pytest.importorskip("jax")
    import pyro_vd.guides.numpyro as mirror_guides
    import pyro_vd.numpyro as mirror

    check(shown(mirror, mirror_guides))
