"""The tests check types and shapes at every call: a name of an axis means one size throughout a call."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from nearstep.algorithm.losses import probability_ratio
from nearstep.common.spelling import nearest
from nearstep.types import TopLogprobs
from tests import shapes


def shortened(values: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    return values[:-1]


@pytest.mark.parametrize("call", [
    lambda: probability_ratio(torch.zeros(3), torch.zeros(1)),  # which torch would spread over all three
    lambda: probability_ratio(torch.zeros(3), torch.zeros(3).long()),
    lambda: TopLogprobs(torch.zeros(2, 3).long(), torch.zeros(2, 1)),
    lambda: shapes.with_checks(shortened)(torch.zeros(3)),
    lambda: nearest(3, ["a"]),
])  # fmt: skip
def test_what_is_not_as_annotated_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_what_is_as_annotated_passes_and_calls_inside_of_calls_have_sizes_of_their_own():
    assert probability_ratio(torch.zeros(3), torch.zeros(3)).tolist() == [1, 1, 1]
    TopLogprobs(torch.zeros(2, 3).long(), torch.zeros(2, 3))

    def outer(values: Float[Tensor, " actions"]) -> Float[Tensor, " actions"]:
        probability_ratio(torch.zeros(5), torch.zeros(5))
        return values

    assert len(shapes.with_checks(outer)(torch.zeros(2))) == 2
