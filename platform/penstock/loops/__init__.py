"""The loops: observe, scale, probe, reconcile, publish, write usage, keep house.

Each module is one loop: read rows and shared state, ask a policy, write what it decided. ``tasks`` holds the Celery
tasks, ``timetable`` their periods, ``lease`` keeps a tick single among several processes.
"""
