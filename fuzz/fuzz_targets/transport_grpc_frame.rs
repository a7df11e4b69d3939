#![no_main]

raftkv_fuzz::fuzz!("transport_grpc_frame");
