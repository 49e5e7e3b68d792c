"""Laws that every object of an axis fulfils, the user's too; `check_…` raises ConformanceError where one is broken.

`nearstep check my_file.py:MyRegion` is the same from the command line.
"""

from nearstep.testing.advantages import check_advantage
from nearstep.testing.aggregations import check_loss_aggregation
from nearstep.testing.auxiliary_losses import check_auxiliary_loss
from nearstep.testing.backends import check_backend
from nearstep.testing.corrections import check_correction
from nearstep.testing.engines import check_engine
from nearstep.testing.gates import check_gate
from nearstep.testing.judges import check_judge
from nearstep.testing.kl_controllers import check_kl_controller
from nearstep.testing.law import CheckResult
from nearstep.testing.rewards import check_reward
from nearstep.testing.samplers import check_sampler
from nearstep.testing.schedules import check_critic_schedule
from nearstep.testing.trust_regions import check_trust_region
from nearstep.testing.value_heads import check_value_head

__all__ = [
    "CheckResult",
    "check_advantage",
    "check_auxiliary_loss",
    "check_backend",
    "check_correction",
    "check_critic_schedule",
    "check_engine",
    "check_gate",
    "check_judge",
    "check_kl_controller",
    "check_loss_aggregation",
    "check_reward",
    "check_sampler",
    "check_trust_region",
    "check_value_head",
]
