"""The site of the documentation: pages that are made from the code, and how files outside docs/ come into it."""
