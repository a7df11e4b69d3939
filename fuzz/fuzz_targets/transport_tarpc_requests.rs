#![no_main]

raftkv_fuzz::fuzz!("transport_tarpc_requests");
