"""What a run tells people and scripts: numbers, files, the screen, trackers, callbacks, the model card."""
