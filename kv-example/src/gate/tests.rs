//! The gate in front of a service that does nothing.
