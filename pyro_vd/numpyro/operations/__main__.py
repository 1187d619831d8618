"""``python -m pyro_vd.numpyro.operations`` prints the table of operations."""

from pyro_vd.numpyro.operations import operations_table

if __name__ == "__main__":
    print(operations_table())
