"""The nouns of the mesh: frozen values with no behaviour that needs a clock, a socket or chance."""
