"""How long a client waits for a controller that is away."""

import pytest

from ipyfleet_client.away import DYING_S, LOCAL_PATIENCE_S, TCP_PATIENCE_S, Away
from ipyfleet_protocol.connection import new_connection_info, new_instance


def make(limit_s=None, *, dead=False, over_tcp=False, recover_s=0.0):
    """An absence of a controller that is this process, or a dead one."""
    info = new_connection_info(instance=new_instance(), role="client", urls=["unix://x"])
    info.recover_s = recover_s
    if dead:
        info.pid_start = 1.0
    away = Away(info, limit_s)
    away.over_tcp = over_tcp
    return away


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"dead": True}, 0.0),
        ({"dead": True, "recover_s": 30.0}, 30.0),
        ({}, LOCAL_PATIENCE_S),
        ({"recover_s": 30.0}, 30.0),
        ({"over_tcp": True}, TCP_PATIENCE_S),
        ({"over_tcp": True, "recover_s": 90.0}, 90.0),
        ({"dead": True, "limit_s": 7.0, "recover_s": 30.0}, 7.0),
        ({"over_tcp": True, "limit_s": 0.0}, 0.0),
        ({"dead": True, "limit_s": 0.0}, 0.0),
        ({"limit_s": 0.0}, DYING_S),
    ],
)
def test_patience(options, seconds):
    """It depends on whether the controller died, on what its owner promised and on the network."""
    assert make(**options).leave(100.0) == seconds


def test_time_runs_from_the_first_loss():
    """Connections that cannot be made do not prolong the wait; one that was made ends it."""
    away = make(recover_s=30.0)
    away.leave(100.0)
    assert away.leave(110.0) == 20.0
    assert away.come_back()
    assert not away.come_back()
    assert away.leave(200.0) == 30.0


def test_a_controller_that_was_started_anew_is_not_called_dead():
    """The process that the connection file names is of no interest once another one took over."""
    away = make(dead=True, recover_s=30.0)
    away.leave(1.0)
    assert away.died
    assert "has died" in away.reason(5.0)
    assert "within 4 s" in away.reason(5.0)
    away.come_back()
    away.leave(10.0)
    assert not away.died
    assert "connection" in away.reason(10.0)


def test_a_cluster_that_was_stopped_is_not_waited_for(tmp_path):
    """Where the directory of the controller's socket is removed it does not come back."""
    folder = tmp_path / "sockets"
    folder.mkdir()
    info = new_connection_info(
        instance=new_instance(), role="client", urls=[f"unix://{folder}/router"]
    )
    info.recover_s = 30.0
    away = Away(info)
    assert away.leave(1.0) == 30.0
    folder.rmdir()
    assert away.leave(2.0) == 0.0
    assert "was stopped" in away.reason(2.0)
