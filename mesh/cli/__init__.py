"""The ``mesh`` command, one file per noun; the only place that knows both planes."""
