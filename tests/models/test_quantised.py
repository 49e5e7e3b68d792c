"""Weights in few bits stay as they were packed."""

from torch import nn

from nearstep.models.quantised import keep_layout


def test_bitsandbytes_is_kept_from_laying_weights_anew_before_they_train():
    """Its layers say by this attribute whether the processor has the kernel for it."""
    packed, plain = nn.Linear(2, 2), nn.Linear(2, 2)
    packed.support_avx512bf16_for_cpu = True
    keep_layout(nn.Sequential(packed, plain))
    assert packed.support_avx512bf16_for_cpu is False
    assert "support_avx512bf16_for_cpu" not in vars(plain)
