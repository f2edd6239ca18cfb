"""What ``rankscope demo`` measures: a small trained network that ships with the package, and its data."""
