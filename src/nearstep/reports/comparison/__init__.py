"""Several runs over each other: `nearstep compare`."""
