"""Score the horizontal scaling policy on recorded traffic: cost, lateness, number of launches, against bounds."""
