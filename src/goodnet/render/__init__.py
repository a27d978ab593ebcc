"""From reports to something that a person or a machine reads."""
