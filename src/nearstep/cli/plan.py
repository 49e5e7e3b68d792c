"""`nearstep plan`: what a run would need on a machine, before anything is loaded."""

import json

from nearstep.config.planning import PlanConfig

CANNOT = 3  # the exit code where no layout fits
NOTE = (
    "No weight is loaded: of a hub name only the configuration is fetched. Exit code: 0 where a layout fits, "
    f"{CANNOT} where none does. docs/planning.md says what is reckoned with, and how near it came to what was measured."
)


def run_plan(settings: PlanConfig) -> int:
    """Print the plan; the exit code."""
    from nearstep.planning.plan import make_plan
    from nearstep.planning.telling import plan_record, tell_plan

    plan = make_plan(settings)
    if settings.json:
        print(json.dumps(plan_record(plan, settings.plans), ensure_ascii=False, indent=2))
    else:
        tell_plan(plan, settings.plans)
    return 0 if any(layout.fits for layout in plan.proposed) else CANNOT
