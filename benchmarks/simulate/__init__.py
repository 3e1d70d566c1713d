"""What a job would take on a cluster that is not there: discrete events, fed with constants."""
