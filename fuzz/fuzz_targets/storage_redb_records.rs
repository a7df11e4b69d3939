#![no_main]

raftkv_fuzz::fuzz!("storage_redb_records");
