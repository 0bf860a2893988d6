"""Single-URL mode: completions and chat are forwarded to the server at GENERATION_URL."""
