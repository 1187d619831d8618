"""What needs neither torch nor JAX, and serves both backends."""
