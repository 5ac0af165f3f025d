"""Where work is done: the scheduler, clusters, devices, memory."""
