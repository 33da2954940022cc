"""The published procedure: parabolas per budget, power laws through their minima, their bias."""
