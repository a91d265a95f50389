"""Settings of the Celery workers, found by ``dagster_celery.app`` under this name on the ``PYTHONPATH``.

The URLs of broker and results come from ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``, which Celery reads itself.
"""

# A worker takes a run when a process is free for it, and not before: a run that waits inside one worker could not be
# taken by another, and would be lost for the visibility time-out if that worker died.
worker_disable_prefetch = True
worker_prefetch_multiplier = 1
# A run that was started is not delivered a second time; Dagster decides whether to repeat it.
task_acks_late = False
# A child that dies (out of memory) fails its run at once instead of leaving it started.
task_reject_on_worker_lost = False
# A fresh process now and then, so that nothing that a run leaves in memory adds up.
worker_max_tasks_per_child = 50
# On SIGTERM a worker finishes what it runs; systemd and Kubernetes need a longer grace than that, or send SIGQUIT.
broker_connection_retry_on_startup = True
# The states of tasks are asked for as long as run monitoring looks at them.
result_expires = 86_400
