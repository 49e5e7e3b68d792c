"""How launch commands, scripts and settings of other libraries become ours."""
