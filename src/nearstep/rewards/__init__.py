"""What a response is worth: reward models and reward functions behind one protocol, added up with weights."""
