"""The table of operations: every entry has a case, and a rule of the user's enters as ours do."""

from __future__ import annotations

import pytest

from pyro_vd.operations.table import TABLE, check_signature


@pytest.mark.parametrize("operation", [function for function, entry in TABLE.items() if entry.rule], ids=str)
def test_rules_have_the_parameters_of_their_operations(operation):
    check_signature(TABLE[operation].rule, operation, TABLE[operation].weights)
