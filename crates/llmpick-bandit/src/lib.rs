//! Pure mathematics of routing: statistics, bounds, relaxations, rounding, automata, Q-learning, baselines.
