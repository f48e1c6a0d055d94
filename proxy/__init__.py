"""The data plane: the asyncio sidecar. Read ``exchange.py`` first."""
