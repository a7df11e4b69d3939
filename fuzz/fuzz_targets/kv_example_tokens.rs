#![no_main]

raftkv_fuzz::fuzz!("kv_example_tokens");
