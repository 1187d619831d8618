"""``python -m pyro_vd.operations`` prints the table of operations."""

from pyro_vd.operations import operations_table

if __name__ == "__main__":
    print(operations_table())
