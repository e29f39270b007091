//! T206: everything on the volume was written by an agent.
