"""Records of tasks: one interface, `base.TaskDatabase`, and a backend per file."""
