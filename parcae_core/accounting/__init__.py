"""What a trial costs, in closed form: parameters, FLOPs, memory. Free of torch."""
