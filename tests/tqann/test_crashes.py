"""A sample of the crashes of benchmarks/crash_points.py, and proof that the harness sees a file that is wrong."""

import os

import pytest

from tqann.files import Disk
from tqbench.crashes import SCRIPTS, Script, check_kill, kill_points, power_losses
from tqbench.crashes.kill import CALLS, KillingDisk, KillPoint
from tqbench.crashes.power import NAMES, POLICIES, RecordingDisk

SHORT = Script("short", 8, options={"refine_bits": 4})
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_processes_killed_at_any_call(script, tmp_path):
    states = script.states(tmp_path / "expected")
    assert len(set(states)) == script.steps + 1
    (tmp_path / "short").mkdir()
    points = [*kill_points(script, tmp_path), *kill_points(script, tmp_path / "short", 97)]
    assert len(points) > 1000
    wrong = [check_kill(script, states, point, tmp_path / str(n)) for n, point in enumerate(points[::61])]
    assert [found for found in wrong if found] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_power_lost_at_any_call(script, tmp_path):
    losses = list(power_losses(script, tmp_path, every=9, recover=10))
    assert [(loss, found) for loss, _, found in losses if found] == []
    assert {loss.data for loss, _, _ in losses} == set(POLICIES)
    assert {loss.names for loss, _, _ in losses} == set(NAMES)
    assert len(losses) > 300


def test_power_lost_during_recovery(tmp_path):
    torn = []
    for loss, files, _ in power_losses(SHORT, tmp_path, every=3, recover=50):
        content = files.get(str(tmp_path / "index.tqann"))
        if content and loss.data in ("some parts", "garbage"):
            torn.append(content)
    recovery = Script("recovery", 2, seed=5)
    for number, start in enumerate(torn[::20]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert [
            found for _, _, found in power_losses(recovery, folder, start, every=3, recover=10) if found
        ] == []
    assert number >= 3


class Forgetful(RecordingDisk):
    """Syncs new files alone, not what is appended."""

    def fsync(self, descriptor):
        if any(name.endswith(".tmp") for name, file in self._files.items() if file == self._open[descriptor]):
            super().fsync(descriptor)


class Nameless(RecordingDisk):
    """Syncs no folder."""

    def sync_folder(self, folder):
        pass


@pytest.mark.parametrize("disk", [Forgetful, Nameless])
def test_a_missing_sync_is_found(disk, tmp_path):
    found = [wrong for *_, wrong in power_losses(SHORT, tmp_path, every=2, recover=50, disk=disk) if wrong]
    assert any("promises were given" in wrong for wrong in found)


class Clumsy(KillingDisk):
    """Makes room before it renames."""

    def replace(self, source, target):
        if os.path.exists(target):
            os.unlink(target)
        super().replace(source, target)


class InPlace(KillingDisk):
    """Writes the new file over the old one."""

    def open(self, path, flags):
        if path.endswith(".tmp"):
            path = os.path.join(os.path.dirname(path), "index.tqann")
            flags &= ~os.O_EXCL
        return super().open(path, flags)

    def replace(self, source, target):
        pass


@needs_fork
@pytest.mark.parametrize("disk", [Clumsy, InPlace])
def test_a_file_that_is_not_replaced_at_once_is_found(disk, tmp_path):
    script = Script("short", 6)  # of which the last one writes a new file
    states = script.states(tmp_path / "expected")
    points = [point for point in kill_points(script, tmp_path) if point.kept == 0]
    wrong = [check_kill(script, states, point, tmp_path / str(n), disk) for n, point in enumerate(points)]
    assert any(wrong)


@needs_fork
def test_a_child_that_lives_is_found(tmp_path):
    states = SHORT.states(tmp_path / "expected")
    assert check_kill(SHORT, states, KillPoint(10**6), tmp_path / "child").endswith("was not killed")


def test_every_call_that_changes_a_file_is_a_point():
    assert set(CALLS) == {name for name in vars(Disk) if not name.startswith("_")}
