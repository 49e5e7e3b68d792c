"""The one forward pass over packed rows, and what is read from its states."""
