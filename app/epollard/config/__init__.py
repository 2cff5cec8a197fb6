"""The configuration: options, the types of their values, the sources of values, and what is printed about them."""
