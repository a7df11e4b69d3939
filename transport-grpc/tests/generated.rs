//! The committed code for `proto/raft.proto` is what the generator makes of it today.

#![allow(clippy::expect_used, reason = "a test reports by panicking")]

use std::path::Path;

/// Regenerates into a scratch directory and compares; with `REGENERATE=1` it replaces the committed file instead.
#[test]
fn the_generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::Compiler::new([root.join("proto")])
        .expect("the proto directory")
        .include_source_info(true)
        .open_file("raft.proto")
        .expect("a valid raft.proto")
        .file_descriptor_set();
    let scratch = tempfile::tempdir().expect("a scratch directory");
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".")
        .codec_path("crate::codec::Codec")
        .emit_rerun_if_changed(false)
        .out_dir(scratch.path())
        .compile_fds(descriptors)
        .expect("code from the descriptors");

    let fresh = std::fs::read_to_string(scratch.path().join("raftkv.v1.rs")).expect("the fresh code");
    let committed = root.join("src/generated/raftkv.v1.rs");
    if std::env::var_os("REGENERATE").is_some() {
        std::fs::write(&committed, fresh).expect("to replace the committed code");
        return;
    }
    let committed = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        fresh == committed,
        "src/generated/raftkv.v1.rs does not match proto/raft.proto: run `REGENERATE=1 cargo test -p raftkv-transport-grpc --test generated`"
    );
}
