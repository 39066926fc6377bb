"""What crashes at any moment leave of an index file: killed processes, and disks that lose what was not synced."""

from .kill import KillPoint, check_kill, kill_points
from .power import PowerLoss, power_losses
from .script import SCRIPTS, Script, state_of

__all__ = [
    "SCRIPTS",
    "KillPoint",
    "PowerLoss",
    "Script",
    "check_kill",
    "kill_points",
    "power_losses",
    "state_of",
]
