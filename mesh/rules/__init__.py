"""Decisions, pure: who gets a request, whether it is sent again, who is taken out, and why."""
