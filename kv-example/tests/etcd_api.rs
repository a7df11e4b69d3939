//! The committed code under `src/api` is what `proto/` gives.

#![allow(clippy::expect_used, reason = "a test says what went wrong by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const ETCD: (&[&str], &[(&str, &str)]) = (
    &["etcd/auth.proto", "etcd/kv.proto", "etcd/rpc.proto"],
    &[("authpb.rs", "authpb.rs"), ("mvccpb.rs", "mvccpb.rs"), ("etcdserverpb.rs", "etcdserverpb.rs")],
);
/// What holds passwords, what they hash to, tokens, or the key that signs these: `src/api/secrets.rs` has their `Debug`.
const SECRETS: [&str; 9] = [
    ".etcdserverpb.AuthenticateRequest",
    ".etcdserverpb.AuthenticateResponse",
    ".etcdserverpb.AuthUserAddRequest",
    ".etcdserverpb.AuthUserChangePasswordRequest",
    ".raftkv.kv.internal.v1.AuthEnable",
    ".raftkv.kv.internal.v1.UserAdd",
    ".raftkv.kv.internal.v1.UserPassword",
    ".raftkv.kv.internal.v1.ImageAuth",
    ".raftkv.kv.internal.v1.ImageUser",
];
const OURS: (&[&str], &[(&str, &str)]) = (
    &["raftkv/node.proto", "raftkv/command.proto"],
    &[("raftkv.kv.v1.rs", "node.rs"), ("raftkv.kv.internal.v1.rs", "command.rs")],
);

#[test]
fn the_generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let write = std::env::var_os("RAFTKV_REGENERATE").is_some();
    let mut stale = Vec::new();
    for ((protos, files), own) in [(ETCD, false), (OURS, true)] {
        let out = tempfile::tempdir().expect("a temporary directory");
        generate(&root.join("proto"), protos, out.path(), own);
        for (generated, committed) in files {
            let wanted = fs::read_to_string(out.path().join(generated)).expect("generated code");
            let path = root.join("src/api").join(committed);
            if fs::read_to_string(&path).unwrap_or_default() == wanted {
                continue;
            }
            if write {
                fs::write(&path, wanted).expect("write the generated code");
            } else {
                stale.push(path);
            }
        }
    }
    assert!(
        stale.is_empty(),
        "{stale:?} differ from what proto/ gives: RAFTKV_REGENERATE=1 cargo test -p kv-example --test etcd_api"
    );
}

/// Requests are decoded as a whole. In lists two bytes can stand for a value of more than a hundred, so these are counted before (`src/gate/census.rs`).
#[test]
fn no_request_has_a_list_that_is_not_counted() {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut lists = Vec::new();
    for (protos, _) in [ETCD, OURS] {
        let files = protox::compile(protos, [&proto]).expect("the protos compile").file;
        let messages: BTreeMap<_, _> = files
            .iter()
            .flat_map(|file| {
                file.message_type.iter().map(|message| (format!(".{}.{}", file.package(), message.name()), message))
            })
            .collect();
        let methods = files.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
        let mut next: Vec<_> = methods.map(|method| method.input_type().to_owned()).collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = next.pop() {
            let Some(message) = messages.get(&name).filter(|_| seen.insert(name.clone())) else { continue };
            for field in &message.field {
                // `LABEL_REPEATED`
                if field.label == Some(3) {
                    lists.push(format!("{}.{} = {}", message.name(), field.name(), field.number()));
                }
                next.push(field.type_name().to_owned());
            }
        }
    }
    // Ours refer to etcd's.
    lists.sort();
    lists.dedup();
    let counted = [
        "MemberAddRequest.peer_urls = 1",
        "MemberUpdateRequest.peer_urls = 2",
        "TxnRequest.compare = 1",
        "TxnRequest.failure = 3",
        "TxnRequest.success = 2",
    ];
    assert_eq!(lists, counted);
}

fn generate(proto: &Path, protos: &[&str], out: &Path, own: bool) {
    let files = protox::compile(protos, [proto]).expect("the protos compile");
    let mut builder = tonic_prost_build::configure()
        .out_dir(out)
        .bytes(".")
        .codec_path("crate::api::codec::ApiCodec")
        .skip_debug(SECRETS)
        .emit_rerun_if_changed(false);
    if own {
        builder = builder
            .extern_path(".etcdserverpb", "crate::api::etcdserverpb")
            .extern_path(".mvccpb", "crate::api::mvccpb")
            .extern_path(".authpb", "crate::api::authpb");
    }
    builder.compile_fds(files).expect("the code is generated");
}
