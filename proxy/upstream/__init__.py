"""Clusters, their endpoints and the connections to them."""
