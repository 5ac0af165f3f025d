"""Features -> principal mask proposals."""
