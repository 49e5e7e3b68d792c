"""How data files become rows, piece by piece, and how a broken line is named."""
