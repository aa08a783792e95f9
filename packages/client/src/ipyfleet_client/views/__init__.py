"""Views: the engines as something to call."""

from ipyfleet_client.views.balanced import LoadBalancedView
from ipyfleet_client.views.base import View
from ipyfleet_client.views.broadcast import BroadcastView
from ipyfleet_client.views.direct import DirectView

__all__ = ["BroadcastView", "DirectView", "LoadBalancedView", "View"]
