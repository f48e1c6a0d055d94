"""Side by side with real proxies, interleaved, as ratios. ``python -m tests.bench --help`` says how to run it."""
