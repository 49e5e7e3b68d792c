"""What a run leaves on the disk, and that it goes on from there as if nothing had happened."""
