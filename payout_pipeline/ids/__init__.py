"""The condition ids: reading them, today's list, and which worker has which."""
