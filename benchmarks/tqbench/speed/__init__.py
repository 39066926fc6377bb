"""`tq bench speed`: search speed beside the fast rivals, the machine's limits, and updates."""
