"""How a run spreads over processes and devices, behind one protocol."""
