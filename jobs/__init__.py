"""The job system: the job file, the planner, the coordinator, its workers and the command line."""
