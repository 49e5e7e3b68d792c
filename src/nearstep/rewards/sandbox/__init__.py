"""Programs that a policy wrote, run apart from everything else."""
