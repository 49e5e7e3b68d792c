"""The command line: `nearstep COMMAND --name value …`."""
