"""NumPy and torch give the same results, so that a run does not depend on where it is computed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.core import arrays

FLOATS = st.lists(st.floats(width=32), min_size=1, max_size=40).map(torch.tensor)
NUMBERS = st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=40).map(torch.tensor)
MASKS = st.lists(st.booleans(), min_size=1, max_size=40).map(torch.tensor)
IDS = st.lists(st.integers(0, 20), min_size=1, max_size=8).map(torch.tensor)


def on_both(function, *arguments):
    """Return what NumPy makes of the arguments, and what torch makes of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_is_array", lambda values: False)
        by_torch = function(*arguments)
    return function(*arguments), by_torch


@settings(max_examples=100)
@given(MASKS, IDS, FLOATS)
def test_masks_and_ids(mask, ids, values):
    for function, argument in (
        (arrays.ids_of, mask),
        (arrays.ids_of, torch.zeros_like(mask)),
        (arrays.is_finite, values),
        (arrays.is_finite, values.double()[None]),
    ):
        by_numpy, by_torch = on_both(function, argument)
        assert by_numpy.dtype == by_torch.dtype
        assert torch.equal(by_numpy, by_torch)
    assert on_both(arrays.count_true, mask) == (mask.sum(), mask.sum())
    rises = all(a < b for a, b in zip(ids.tolist(), ids.tolist()[1:], strict=False))
    assert on_both(arrays.is_ascending, ids) == (rises, rises)


@settings(max_examples=100)
@given(FLOATS, st.data())
def test_less(values, data):
    bound = data.draw(st.sampled_from([*values, torch.tensor(0.0)]))
    by_numpy, by_torch = on_both(arrays.is_less, values, bound)
    assert torch.equal(by_numpy, by_torch)
    assert by_numpy.tolist() == [value < bound.item() for value in values.tolist()]


@settings(max_examples=100)
@given(NUMBERS, st.data())
def test_order(values, data):
    k = data.draw(st.integers(1, len(values)))
    rising = sorted(values.tolist())
    for partitioned in on_both(arrays.partition, values, k - 1):
        assert partitioned[k - 1] == rising[k - 1]
        assert sorted(partitioned[:k].tolist()) == rising[:k]
        assert sorted(partitioned.tolist()) == rising
    for lowest in on_both(arrays.lowest, values, k):
        assert sorted(lowest.tolist()) == rising[:k]
    assert [float(value) for value in on_both(arrays.kth_lowest, values, k)] == [rising[k - 1]] * 2
    for rows in on_both(arrays.sort_rows, torch.stack([values, values.flip(0)])):
        assert rows.tolist() == [rising, rising]


@pytest.mark.parametrize(
    "values",
    [torch.tensor([2.0, 1.0], dtype=torch.bfloat16), torch.tensor([2.0, 1.0], requires_grad=True)],
    ids=["bfloat16", "with a graph"],
)
def test_what_numpy_cannot_read(values):
    assert arrays.is_finite(values).all()
    assert arrays.is_less(values, values[0]).tolist() == [False, True]
    assert arrays.kth_lowest(values, 1) == 1
    assert arrays.sort_rows(values).tolist() == [1, 2]


def test_copies_to_the_host():
    """On the CPU there is nothing to copy; from a GPU, all are there once they were waited for, pinned."""
    first, second = torch.arange(5), torch.rand(3)
    copies = arrays.to_host(first, second)()
    assert copies[0] is first
    assert copies[1] is second
    assert arrays.to_host()() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_of_a_gpu_are_pinned():
    values = [torch.arange(1_000_000, device="cuda"), torch.rand(1_000_000, device="cuda")]
    copies = arrays.to_host(*values)()
    assert all(copy.is_pinned() for copy in copies)
    assert all(torch.equal(copy, value.cpu()) for copy, value in zip(copies, values, strict=True))
