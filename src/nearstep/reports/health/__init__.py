"""Whether a run is well: rules over the history of its metrics, each with what to look at and what to do next."""
