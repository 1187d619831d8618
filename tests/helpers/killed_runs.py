"""Trainings that are killed at random moments, during their steps and while they save, and go on from their file.

By hand, with the counts: ``python tests/helpers/killed_runs.py 20``.

A process that has imported everything forks one child for each run, and so each kill costs no import.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("svi", "loop with a scheduler", "compiled", "numpyro")


class TorchRun:
    """A run of ``checkpoint_runs``; what Inductor would compile is run as it was recorded, where not asked for."""

    def __init__(self, kind: str):
        import torch
        import torch._inductor

        from helpers.checkpoint_runs import Run

        torch.set_num_threads(1)
        if kind != "compiled by Inductor":
            torch._inductor.compile = lambda graph, example, **options: graph  # type: ignore[attr-defined]
        self.run = Run("compiled" if kind.startswith("compiled") else kind)
        self.run.prepare()

    def load(self, path: Path) -> int:
        return self.run.load(path)

    def save(self, path: Path, step: int) -> None:
        self.run.save(path, step)

    def step(self, step: int) -> None:
        self.run.step(step)

    def values(self) -> list[np.ndarray]:
        return [value.numpy() for value in self.run.values().values()]


class NumPyroRun:
    """A small regression; the state has the random key."""

    def __init__(self, kind: str):
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist

        import pyro_vd.numpyro as vd

        def model(x: Any) -> None:
            weight = numpyro.sample("weight", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
            numpyro.sample("y", dist.Normal(x @ weight.T, 1.0).to_event(2), obs=jnp.ones((4, 2)))

        def guide(x: Any) -> None:
            loc = numpyro.param("loc", jnp.zeros((2, 3)))
            scale = numpyro.param("scale", jnp.full((2, 3), 0.1), constraint=dist.constraints.positive)
            numpyro.sample("weight", dist.Normal(loc, scale).to_event(2))

        svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.1), vd.TraceVD_ELBO())
        self.state = svi.init(jax.random.PRNGKey(0), np.zeros((4, 3), np.float32))
        self.update = jax.jit(svi.update)

    def load(self, path: Path) -> int:
        from pyro_vd.numpyro.training import load_checkpoint

        found = load_checkpoint(path, like=self.state)
        self.state = found.state
        return found.step

    def save(self, path: Path, step: int) -> None:
        from pyro_vd.numpyro.training import save_checkpoint

        save_checkpoint(path, self.state, step=step)

    def step(self, step: int) -> None:
        x = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
        self.state, _ = self.update(self.state, x)

    def values(self) -> list[np.ndarray]:
        import jax

        return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(self.state)]


def make(kind: str) -> Any:
    return (NumPyroRun if kind == "numpyro" else TorchRun)(kind)


def _say(word: str, number: int) -> None:
    """Write a line whole: a kill between the parts that ``print`` writes would leave half of one."""
    os.write(1, f"{word} {number}\n".encode())


def train(kind: str, path: Path, last: int | None) -> None:
    """Go on from the file, and save after every step; without an end, until it is killed."""
    run = make(kind)
    step = run.load(path) if path.exists() else 0
    _say("loaded", step)
    while last is None or step < last:
        run.step(step)
        step += 1
        _say("saving", step)
        run.save(path, step)
        _say("saved", step)
    np.savez(path.with_suffix(".npz"), *run.values())


def serve(kind: str, folder: Path) -> None:
    """Fork a run for every line of the input: the name of its file, and its last step."""
    __import__("pyro_vd.numpyro.training" if kind == "numpyro" else "helpers.checkpoint_runs")
    for line in sys.stdin:
        name, last = line.split()
        child = os.fork()
        if not child:
            train(kind, folder / name, int(last) or None)
            os._exit(0)
        _say("child", child)
        _say("ended", os.waitpid(child, 0)[1])


def kill_runs(kind: str, kills: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Kill a run so many times; raises unless it ends with the values of one that was not.

    Returns:
        How many kills came during a step and during saving, the steps that were done, files that a kill left half.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, "serve", kind, str(folder)]
    times, counts, done = random.Random(seed), {"step": 0, "saving": 0}, 0
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None

        def go(name: str, last: int = 0) -> int:
            print(name, last, file=server.stdin, flush=True)
            return int(_line("child"))

        def _line(word: str) -> str:
            found, number = server.stdout.readline().split()  # type: ignore[union-attr]
            assert found == word, (found, number)
            return number

        saving = 0.003  # seconds that a file takes, as it was last
        for number in range(kills):
            child = go("run")
            loaded = int(_line("loaded"))
            assert done <= loaded <= done + 1, (loaded, done)
            saved = loaded
            for _ in range(times.randrange(1, 4)):
                _line("saving")
                began = time.monotonic()
                saved = int(_line("saved"))
                saving = time.monotonic() - began
            if number % 2:
                _line("saving")
            time.sleep(times.uniform(0, saving))
            os.kill(child, signal.SIGKILL)
            state = "saving" if number % 2 else "step"
            while (line := server.stdout.readline().split())[0] != "ended":
                saved = int(line[1]) if line[0] == "saved" else saved
                state = "saving" if line[0] == "saving" else "step"
            assert int(line[1]) == signal.SIGKILL
            counts[state] += 1
            done = saved
        for name in ("run", "whole"):
            go(name, done + 3)
            while (line := server.stdout.readline().split())[0] != "ended":
                pass
            assert line[1] == "0"
        server.stdin.close()
    run, whole = (np.load(folder / f"{name}.npz") for name in ("run", "whole"))
    assert run.files == whole.files and len(run.files) > 3
    assert all(np.array_equal(run[name], whole[name]) for name in run.files)
    return {**counts, "steps": done, "half files": len([*folder.glob(".*.part")])}


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], Path(sys.argv[3]))
    else:
        for each in sys.argv[2:] or KINDS:
            with tempfile.TemporaryDirectory() as place:
                print(each, kill_runs(each, int(sys.argv[1]), Path(place)), flush=True)
