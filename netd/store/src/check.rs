//! What each kind may hold: the store refuses names and parts that its readers could not read. Pure.
