"""Scripts that measure and simulate, with their tests."""
