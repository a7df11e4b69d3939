#![no_main]

raftkv_fuzz::fuzz!("storage_file_records");
