"""An application of several modules: handlers know no bus, the main module has it."""
