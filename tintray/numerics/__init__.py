"""Layout of parameters, random streams, precision, schedules: what every fit counts with."""
