"""How a run is looked at: one HTML page of its own, from curves to an update, a sample and a token."""
