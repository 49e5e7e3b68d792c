"""What the benchmarks share: workloads, meters, the two systems under test, the floor, the tables."""
