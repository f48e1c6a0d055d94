"""The generated package; the meaning of everything here stands in ``protos/mesh``."""
