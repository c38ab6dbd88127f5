"""The door to Ray: sessions, resources, jobs, preemption notices and exported metrics."""
