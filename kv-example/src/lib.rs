//! A replicated key-value server that speaks the etcd v3 API.

pub mod api;
pub mod machine;
pub mod store;
