"""HTTP as values: header lists, the events that all codecs speak, and how an exchange can end."""
