"""The hub: who is here, and what they ask; a pure state machine, `core.HubCore` is its door."""
