"""The scheduler: a pure state machine; `core.SchedulerCore` is its door."""
