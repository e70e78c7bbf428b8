//! Virtual-clock simulation, replay of tables and ledgers, plots.
