"""``examples/deploy.py``: the budget that is chosen after fine-tuning, and nets that a second call takes up again."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from helpers.paths import EXAMPLES

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests were taken out of the repository")
if EXAMPLES.exists():
    sys.path.insert(0, str(EXAMPLES))
    import _deployed
    import deploy

    sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ({0.9: 1.9, 0.98: 2.05, 0.99: 2.2}, 0.98),
        ({0.9: 2.3, 0.98: 2.05, 0.99: 2.2}, 0.98),  # a denser one that is over does not hide a sparser one
        ({0.9: 1.9, 0.98: 1.8, 0.99: 1.7}, 0.99),
        ({0.9: 1.9, 0.98: 2.1 + 1e-7, 0.99: 2.117}, 0.98),  # a number of examples over all, in float32
        ({0.9: 2.4, 0.98: 2.2, 0.99: 2.3}, 0.98),  # none within 0.1: the best
    ],
    ids=str,
)
def test_the_sparsest_within_the_tolerance_is_taken(errors, chosen):
    assert deploy.choose(errors, unpruned=2.0) == chosen
    trained = {"seed": 0, "chosen": chosen, "before fine-tuning": 0.9}
    said = deploy.choice(trained | {"validation error": {"unpruned": 2.0} | {f"{s:g}": e for s, e in errors.items()}})
    assert f"{100 * chosen:g} % of the weights pruned" in said
    assert ("none is within 0.1 points" in said) == (min(errors.values()) > 2.1)


def test_a_folder_without_nets_or_of_two_trainings_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="--load: expected trained_0.json in .*, found none"):
        deploy.found(tmp_path)
    for seed, epochs in ((10, 3), (2, 3), (1, 5)):
        (tmp_path / f"trained_{seed}.json").write_text(json.dumps({"seed": seed, "options": {"epochs": epochs}}))
    with pytest.raises(SystemExit, match="--load: expected seeds of one training"):
        deploy.found(tmp_path)
    (tmp_path / "trained_1.json").unlink()
    assert [one["seed"] for one in deploy.found(tmp_path)] == [2, 10]


@pytest.mark.slow
def test_nets_are_taken_up_again(tmp_path, capsys):
    """The table of a second call is that of the first, but for its times; two budgets, one of them chosen."""
    pytest.importorskip("safetensors")
    first, second = (str(tmp_path / name) for name in ("first", "second"))
    shared = ["--quick", "--quiet", "--out"]
    deploy.main(deploy.arguments([*shared, first, "--epochs", "1", "--shares", "0.5", "0.9"]))
    deploy.main(deploy.arguments([*shared, second, "--load", first]))
    (one,), (two,) = (json.loads((tmp_path / name / "result.json").read_text())["runs"] for name in ("first", "second"))
    for run in (one, two):
        for rows in run["rows"].values():
            for row in rows.values():
                assert all(row.pop(f"ms at {batch}") > 0 for batch in deploy.BATCHES)
    assert one == two and one["chosen"] in (0.5, 0.9, one["before fine-tuning"])
    assert all(len(points) == 2 for points in one["curves"].values())
    assert capsys.readouterr().out.count("seed 0: ") == 2
    with pytest.raises(SystemExit, match=r"--sparsity: expected one of \[0.*\], which were trained, got 0.123"):
        deploy.main(deploy.arguments([*shared, second, "--load", first, "--sparsity", "0.123"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_linear_layers_in_eight_bits_of_onnx():
    """Rounded, by half a step of 2/255 of the largest at most; a byte for a weight; convolutions as they are."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 62, 400)).eval()
    x = torch.randn(5, 1, 64)
    rounded = _deployed.onnx_form(net, x[:2], int8=True)
    with torch.no_grad():
        hidden = net[:2](x)
        weight = net[2].weight
        off = (rounded.call(x) - net(x)).abs()
        steps = hidden.aminmax()
        step_x, step_w = (steps.max - steps.min) / 255, weight.abs().amax(1) / 127
        bound = (
            0.5 * (step_x * weight.abs().sum(1) + step_w * hidden.abs().sum(1, keepdim=True)) + 248 * step_x * step_w
        )
        assert 1e-5 < off.max() and (off <= bound).all()
    assert rounded.bytes < 1.1 * weight.numel() + 5000
