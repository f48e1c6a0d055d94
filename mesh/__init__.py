"""What both planes share: the nouns, the decisions, discovery, telemetry and the ``mesh`` command."""
