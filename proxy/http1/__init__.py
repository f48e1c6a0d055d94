"""HTTP/1.1: a pure codec and its two shells."""
