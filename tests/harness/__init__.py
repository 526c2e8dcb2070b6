"""Real processes for tests: what starts them, what can be done to them, and how to look inside."""
