"""`python -m nearstep`, for launchers that start a module: `torchrun --nproc_per_node 2 -m nearstep ppo …`."""

import sys

from nearstep.cli.main import main

sys.exit(main())
