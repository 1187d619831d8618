"""Sparse weights on JAX: BCOO and BCSR beside the dense product, for several shares of zeros and batches.

    python examples/sparse_jax.py                        # LeNet-300-100, half a minute
    python examples/sparse_jax.py --zeros 0.99 --batches 1 1000
    python examples/sparse_jax.py --quick                # a small net, to see that it works

pyro_vd.numpyro.deploy compiles a pruned net as it is and with its matrices in jax.experimental.sparse, compares the
outputs, measures, and returns the fastest. Here the net is one of flax with so many zeros at random.
"""

from __future__ import annotations

import argparse

import _options


def main(args: argparse.Namespace) -> None:
    _options.require(jax='-e ".[numpyro]"', flax="flax")
    import jax
    from flax import nnx

    import pyro_vd.numpyro as vd

    print(f"{'zeros':>7}{'batch':>7}{'dense':>10}{'BCOO':>10}{'BCSR':>10}  ms a call; fastest")
    for zeros in args.zeros:
        for batch in args.batches:
            rngs = nnx.Rngs(args.seed)
            layers = []
            for size in zip(args.sizes[:-1], args.sizes[1:], strict=True):
                layer = nnx.Linear(*size, rngs=rngs)
                layer.kernel[...] *= jax.random.uniform(rngs.params(), size) >= zeros
                layers += [layer, jax.nn.relu]
            x = jax.random.normal(rngs.params(), (batch, args.sizes[0]))
            found = vd.deploy(nnx.Sequential(*layers[:-1]), x, min_sparsity=0.5)
            dense = found.rows[0].milliseconds
            cells = "".join(f"{row.milliseconds:>10.4f}" for row in found.rows)
            best = min(row.milliseconds for row in found.rows)
            print(f"{100 * zeros:>5g} %{batch:>7}{cells}  {found.form}, {dense / best:.2f}x", flush=True)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, None, data=False, bar=False)
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 300, 100, 10], help="of the layers")
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.95, 0.98, 0.99], help="shares of the weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 100, 1000])
    args = _options.parse(parser, argv, sizes=[20, 10], zeros=[0.9], batches=[10])
    if len(args.sizes) < 2:
        parser.error(f"--sizes: expected inputs and outputs, two numbers or more, got {args.sizes}")
    return args


if __name__ == "__main__":
    main(arguments())
