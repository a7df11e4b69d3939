#![no_main]

raftkv_fuzz::fuzz!("raft_shelf");
