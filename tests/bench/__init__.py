"""Side by side with real proxies, interleaved, as ratios. ``python -m tests.bench --help`` says how to run it."""

import os

# Read when grpc is imported. This program uses gRPC and starts others; its own forks never come back to gRPC, which
# would otherwise say so each time.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
