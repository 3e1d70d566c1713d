"""Jobs that wait for a cluster: submitted, handed over, followed, stopped, resumed."""
