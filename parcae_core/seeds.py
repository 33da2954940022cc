"""Keys that keep the random streams of one seed apart. Changing one changes what every trial trains.

A draw's key is (seed, stream, step, ...). Initial states have two streams: on a CPU each sequence has
a generator of its own, on a GPU they come from the device's, so that the numbers differ in any case.
"""

DEPTHS = 0x0DE97
STATES_ON_CPU = 0x57A7E
STATES_ON_DEVICE = 0x57A7F
ROW_ORDER = "parcae row order 1"
