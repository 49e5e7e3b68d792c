"""The only place where names become objects: settings, models and data become a run."""
