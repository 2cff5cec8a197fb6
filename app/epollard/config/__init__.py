"""What the server was told: options, their values, where these come from, and what a person reads of them."""
