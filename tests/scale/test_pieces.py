"""How networks are dealt out, on a group of one process: which stay whole, their types, what is gathered together."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from nearstep.common.errors import ModelError
from nearstep.models.forward.forward import as_it_is
from nearstep.scale.backend import RoleNetwork
from nearstep.scale.degrees import Degrees
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import TorchBackend
from nearstep.testing import check_backend
from nearstep.testing.backends import LAWS
from tests.tiny import tiny_causal_lm, tiny_scalar_model


@pytest.fixture(autouse=True)
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def backend(whole_roles=(), *, masters=True):
    alone = TorchBackend(0, 1, torch.device("cpu"))
    return ShardedBackend.over(alone, Degrees(1, 1), whole_roles, masters=masters)


def in_pieces(model):
    return {isinstance(weight, DTensor) for weight in model.parameters()}


def network(model):
    return RoleNetwork(model, one_pass=True)


def test_it_keeps_the_laws_of_backends():
    assert [law for law, _ in check_backend(backend()).held] == [law.name for law in LAWS]


def test_whole_roles_stay_as_they_are():
    policy, critic = tiny_causal_lm(), tiny_scalar_model()
    runners = backend(("value",)).spread({"policy": network(policy), "value": network(critic)})
    assert in_pieces(policy) == {True}
    assert in_pieces(critic) == {False}
    assert runners["value"] is as_it_is
    assert runners["policy"] is not as_it_is


def test_networks_that_share_weights_are_dealt_out_together():
    """As a copy of a policy's adapters on the same frozen weights."""
    policy = tiny_causal_lm()
    shared = {id(weight): weight for weight in policy.model.layers[0].parameters()}
    reference, teacher = copy.deepcopy(policy, dict(shared)), tiny_causal_lm(seed=5)
    found = backend()
    roles = {"policy": policy, "reference": reference, "teacher": teacher}
    found.spread({role: network(model) for role, model in roles.items()})
    assert found.sharded[policy] is found.sharded[reference] is not found.sharded[teacher]
    assert policy.model.layers[0].mlp.up_proj.weight is reference.model.layers[0].mlp.up_proj.weight
    ids = torch.arange(5)[None]
    with torch.no_grad(), found.gathered(policy, reference):
        assert torch.equal(policy(input_ids=ids).logits, reference(input_ids=ids).logits)
        assert torch.equal(policy(input_ids=ids).logits, tiny_causal_lm()(input_ids=ids).logits)


def test_weights_are_pieces_again_after_gathered_and_stay_whole_within_it():
    policy = tiny_causal_lm()
    found = backend()
    found.spread({"policy": network(policy)})
    with found.gathered(policy, None, policy):
        with found.gathered(policy):
            assert in_pieces(policy) == {False}
        assert in_pieces(policy) == {False}
    assert in_pieces(policy) == {True}
    with pytest.raises(KeyError), found.gathered(policy):
        raise KeyError
    assert in_pieces(policy) == {True}


@pytest.mark.parametrize(("masters", "kept"), [(True, torch.float32), (False, torch.bfloat16)])
def test_narrow_weights_are_pieces_in_float32_and_compute_and_are_saved_as_they_were(masters, kept):
    policy = tiny_causal_lm(dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    found = backend(masters=masters)
    found.spread({"policy": network(policy)})
    assert {weight.dtype for weight in policy.parameters()} == {kept}
    with found.gathered(policy):
        assert {weight.dtype for weight in policy.parameters()} == {torch.bfloat16}
    whole = found.whole(policy)
    assert whole is not None
    assert whole.is_copy
    assert {name: weight.dtype for name, weight in whole.model.state_dict().items()} == {
        name: weight.dtype for name, weight in before.items()
    }
    assert all(torch.equal(weight, before[name]) for name, weight in whole.model.state_dict().items())


def test_weights_tied_under_two_names_stay_one():
    policy = tiny_causal_lm("gpt2")
    found = backend()
    found.spread({"policy": network(policy)})
    assert policy.lm_head.weight is policy.transformer.wte.weight
    whole = found.whole(policy).model
    assert whole.lm_head.weight is whole.transformer.wte.weight


def test_weights_of_several_types_that_train_are_refused():
    policy = tiny_causal_lm(dtype=torch.bfloat16)
    policy.model.norm.float()
    with pytest.raises(ModelError, match=r"bfloat16, torch.float32 train together.*or name the role in whole_roles"):
        backend().spread({"policy": network(policy)})
