"""What the examples in docstrings may use."""

import pytest


@pytest.fixture(autouse=True)
def _a_pipeline_for_examples(request, doctest_namespace):
    """`pipe`: the digits' model with random weights."""
    if isinstance(request.node, pytest.DoctestItem) and request.node.name.startswith("biflow.pipeline"):
        from biflow import Pipeline

        doctest_namespace["pipe"] = Pipeline.from_recipe("biflow_digits")
