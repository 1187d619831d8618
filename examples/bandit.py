"""Thompson sampling with a Bayesian net, by coherent draws of its weights, by local draws, and epsilon-greedy.

    python examples/bandit.py              # 10 seeds, some minutes
    python examples/bandit.py --quick      # 2 seeds, few rounds

Each round has a group of 20 contexts, and one arm of ten is chosen for the whole group; its reward at every context is
seen, the other arms' are not. A Thompson sampler chooses the arm that is best for the group under one draw. A coherent
draw is one function, wrong about all contexts alike, and so it tries arms that may be good. Local draws have noise of
their own at every context, most of which an average over the group removes, and so they try fewer arms.
Printed are the regret of a round (best mean reward less that of the chosen arm) summed over all rounds, and over the
last quarter; mean +- standard error over the seeds. Writes regret.png and result.json to --out.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import _figures
import _options
import pyro
import pyro.distributions as dist
import torch
from _seeds import mean_and_error, over_seeds
from torch import Tensor, nn
from tqdm import tqdm

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

POLICIES = ("coherent draws", "local draws", "epsilon-greedy")
ARMS, FEATURES, HIDDEN = 10, 8, 32
NOISE = 0.5  # standard deviation of a reward
EPSILON = 0.1  # share of rounds in which epsilon-greedy takes any arm


class Bandit:
    """Rewards ``level + 0.5 * tanh(context @ direction)`` of each arm, levels from N(0, 0.3**2)."""

    def __init__(self, seed: int, group: int):
        self.random = torch.Generator().manual_seed(seed)
        self.group = group
        self.levels = 0.3 * torch.randn(ARMS, generator=self.random)
        self.directions = torch.randn(FEATURES, ARMS, generator=self.random) / math.sqrt(FEATURES)

    def contexts(self) -> Tensor:
        return torch.randn(self.group, FEATURES, generator=self.random)

    def means(self, x: Tensor) -> Tensor:
        """Mean reward of every arm at every context."""
        return self.levels + 0.5 * torch.tanh(x @ self.directions)

    def rewards(self, x: Tensor, arm: int) -> Tensor:
        return self.means(x)[:, arm] + NOISE * torch.randn(len(x), generator=self.random)


class Agent:
    """A net with a reward for every arm, all of its parameters random, trained on what was seen."""

    def __init__(self, policy: str, steps: int):
        self.policy, self.steps = policy, steps
        net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, ARMS))
        prior = {"0.*": dist.Normal(0.0, 1 / math.sqrt(FEATURES)), "2.weight": dist.Normal(0.0, 1 / math.sqrt(HIDDEN)),
                 "2.bias": dist.Normal(0.0, 0.5)}  # fmt: skip
        self.bnn = vd.BayesianModule(net, prior, where=lambda name, layer: True)
        self.guide = AutoMeanField(self.model, init_log_sigma2=-3.0)
        self.loss = vd.TraceVD_ELBO(estimator="local")(self.model, self.guide)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.optimizer: Any = None

    def model(self, x: Tensor, arm: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The rewards of all arms; those of ``arm`` are seen with noise."""
        rewards = self.bnn(x)
        if arm is not None:
            with vd.data_plate(len(x), len(x)):
                pyro.sample("reward", dist.Normal(rewards.gather(1, arm[:, None]).squeeze(1), NOISE), obs=y)
        return rewards

    def choose(self, x: Tensor) -> int:
        """The arm with the highest mean over the group, of one draw or of the mean network."""
        if not self.seen or (self.policy == "epsilon-greedy" and torch.rand(()) < EPSILON):
            return int(torch.randint(ARMS, ()))
        mode = {"coherent draws": "weights", "local draws": "local", "epsilon-greedy": "mean"}[self.policy]
        options: dict[str, Any] = {"num_samples": 1, "mode": mode, "return_sites": "_RETURN"}
        rewards = vd.posterior_predictive(self.model, self.guide, x, **options)["_RETURN"]
        return int(rewards[0].mean(0).argmax())

    def learn(self, x: Tensor, arm: int, y: Tensor) -> None:
        self.seen.append((x, torch.full((len(x),), arm), y))
        data = [torch.cat(parts) for parts in zip(*self.seen, strict=True)]
        self.loss(*data)  # makes the parameters
        self.optimizer = self.optimizer or torch.optim.Adam(self.loss.parameters(), lr=0.02)
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            self.loss(*data).backward()
            self.optimizer.step()


def play(policy: str, seed: int, args: argparse.Namespace) -> list[float]:
    """The regret of every round."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    bandit, agent, regrets = Bandit(seed, args.group), Agent(policy, args.steps), []
    for _ in range(args.rounds):
        x = bandit.contexts()
        arm = agent.choose(x)
        means = bandit.means(x).mean(0)
        regrets.append((means.max() - means[arm]).item())
        agent.learn(x, arm, bandit.rewards(x, arm))
    return regrets


def main(args: argparse.Namespace) -> None:
    pyro.enable_validation(False)
    regrets: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
    with tqdm(total=args.seeds * len(POLICIES), unit="run", disable=args.quiet) as bar:
        for seed in range(args.seed, args.seed + args.seeds):
            for policy in POLICIES:
                regrets[policy].append(play(policy, seed, args))
                bar.update()
    print(f"regret over {args.rounds} rounds, {over_seeds(args.seeds)}")
    print(f"{'policy':<18}{'all rounds':>18}{'last quarter':>18}")
    for policy, runs in regrets.items():
        values, cells = torch.tensor(runs), ""
        for part in (values, values[:, -max(1, args.rounds // 4) :]):
            cells += f"{mean_and_error(part.sum(1)):>18}"
        print(f"{policy:<18}{cells}")
    out = Path(args.out)
    _figures.cumulative_regret(regrets, out / "regret.png")
    (out / "result.json").write_text(json.dumps({"arguments": vars(args), "regret": regrets}, indent=1))
    print(f"regret.png and result.json are in {out}/")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, "bandit", seeds=10, data=False)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--group", type=int, default=20, help="contexts in a round")
    parser.add_argument("--steps", type=int, default=15, help="of training after a round")
    return _options.parse(parser, argv, seeds=2, rounds=8)


if __name__ == "__main__":
    main(arguments())
